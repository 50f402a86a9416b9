"""What is there to learn from? Every family of tasks, in a table and in pictures.

    python benchmarks/families.py --output runs/families
    python benchmarks/families.py --families cartpole catch

For each family: what varies, what is observed and done, the time limit, and the mean returns of the random
agent and of the reference agent, which is told the task (optimal where the optimum is known, else a
controller, hand-written or searched for), on held-out tasks. A picture shows a rollout in one of them. A family
whose package is not installed is left out and named.
"""

from typing import Annotated, Any

import jax
import numpy as np
import study
from gymnax.environments import spaces

from jaxmeta import evaluation, plotting, rollouts, tasks
from jaxmeta.tasks import TaskFamily, locomotion
from jaxmeta.types import Trajectory


class Main(study.Study):
    """The table of families."""

    families: Annotated[study.Names, study.known(tasks.FAMILIES)] = tuple(tasks.names())  # Which.
    num_tasks: int = 50  # Held-out tasks.
    num_episodes: int = 2  # Episodes in a picture, at most 200 steps.


def recorded(key: jax.Array, family: TaskFamily, num_steps: int) -> Trajectory:
    """A stream ``[T]`` in a held-out task, of the controller told the task or, without one, of random actions."""
    controller = family.optimal_action or family.expert_action

    def policy(key: jax.Array, task: Any, obs: jax.Array) -> jax.Array:
        return family.random_action(key) if controller is None else controller(task, obs)

    task_key, key = jax.random.split(key)
    task = family.test(task_key)
    setup = rollouts.Setup(evaluation.controller_learner(policy), family.env, 1, num_steps)
    history = rollouts.lifetime(key, task, task, setup=setup, num_updates=0)
    return jax.tree.map(lambda x: x[0, 0], history.trajectories)


def row(name: str, family: TaskFamily, returns: dict[str, np.ndarray]) -> dict[str, str]:
    """A family's row of the table."""
    space = family.action_space
    actions = f"{space.n}" if isinstance(space, spaces.Discrete) else f"{space.shape[0]} continuous"
    shape = " × ".join(map(str, family.observation_shape)) or "1"
    shown = {name: f"{round(float(x.mean()), 3):.4g}" for name, x in returns.items()}
    if study.optimum_known(family):
        source = "optimal"
    else:
        searched = isinstance(family.env, locomotion.Locomotion)
        source = "searched" if searched else "hand-written"
    return {
        "family": f"`{name}`",
        "what it is": tasks.describe(name),
        "observation": shape,
        "actions": actions,
        "steps": f"{family.horizon}",
        "random": shown["random"],
        "told the task": f"{shown['reference']} ({source})" if "reference" in shown else "",
    }


def draw(main: Main, name: str, family: TaskFamily) -> None:
    """Leaves a picture of a rollout."""
    num_steps = min(main.num_episodes * family.horizon, 200)
    seen = jax.jit(lambda key: recorded(key, family, num_steps))(jax.random.key(0))
    path = main.output / f"{name}.png"
    plotting.rollout(path, seen.timestep.obs, seen.action, seen.reward, seen.last)


def run(main: Main) -> None:
    main.output.mkdir(parents=True, exist_ok=True)
    rows, results = [], {}
    for name in main.families:
        try:
            family = tasks.make(name)
        except ImportError as error:
            study.say(f"{name} is left out: {error}")
            continue
        drawn = tasks.sample_tasks(jax.random.key(0), family, main.num_tasks, split="test")
        keys = jax.random.key(1), jax.random.key(2)
        agents = "random", "reference"
        returns = dict(zip(agents, study.references(keys, drawn, family), strict=False))
        rows.append(row(name, family, returns))
        results[name] = {
            "returns": {agent: float(x.mean()) for agent, x in returns.items()},
            "content": {split: tasks.content_hash(family, split) for split in tasks.SPLITS},
        }
        draw(main, name, family)
        study.say(f"{name}: {results[name]['returns']}")
    if rows:
        study.leave(main, rows, families=results)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
