"""What is there to learn from? Every family of tasks, in a table and in pictures.

    python benchmarks/families.py --output runs/families
    python benchmarks/families.py --families cartpole catch

For each family: what varies, what is observed and done, the time limit, and the mean returns of the random
agent and of the reference agent, which is told the task (optimal where the optimum is known, else a
controller, hand-written or searched for), on held-out tasks. Leaves table.md, results.json and, for each family, a picture of
a rollout in a held-out task. A family whose package is not installed is left out and named.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from gymnax.environments import spaces

from jaxmeta import checks, evaluation, plotting, rollouts, tasks
from jaxmeta.runs import reports, training
from jaxmeta.tasks import TaskFamily, locomotion
from jaxmeta.types import Trajectory


@dataclasses.dataclass(frozen=True)
class Main:
    """The table of families."""

    output: Path = Path("runs/families")
    """Folder for the results; made anew."""
    families: tuple[str, ...] = tuple(tasks.names())
    """Which."""
    num_tasks: int = 50
    """Held-out tasks."""
    num_episodes: int = 2
    """Episodes in a picture, at most 200 steps."""

    def __post_init__(self) -> None:
        checks.some("families", self.families)
        for name in ("num_tasks", "num_episodes"):
            checks.at_least(name, getattr(self, name), 1)
        for name in self.families:
            checks.choice("families", name, tasks.FAMILIES)


def recorded(key: jax.Array, family: TaskFamily, num_steps: int) -> Trajectory:
    """A stream ``[T]`` in a held-out task, of the controller told the task or, without one, of random actions."""
    controller = family.optimal_action or family.expert_action

    def policy(key: jax.Array, task: Any, obs: jax.Array) -> jax.Array:
        return family.random_action(key) if controller is None else controller(task, obs)

    task_key, key = jax.random.split(key)
    task = family.test(task_key)
    history = rollouts.lifetime(
        key,
        task,
        task,
        learner=evaluation.controller_learner(policy),
        env=family.env,
        num_streams=1,
        num_updates=0,
        num_steps=num_steps,
    )
    return jax.tree.map(lambda x: x[0, 0], history.trajectories)


def row(name: str, family: TaskFamily, returns: dict[str, np.ndarray]) -> dict[str, str]:
    """A family's row of the table."""
    space = family.action_space
    actions = f"{space.n}" if isinstance(space, spaces.Discrete) else f"{space.shape[0]} continuous"
    shape = " × ".join(map(str, family.observation_shape)) or "1"
    reference = returns.get("reference")
    return {
        "family": f"`{name}`",
        "what it is": tasks.describe(name),
        "observation": shape,
        "actions": actions,
        "steps": f"{family.horizon}",
        "random": shown(returns["random"]),
        "told the task": "" if reference is None else f"{shown(reference)} ({source(family)})",
    }


def shown(returns: np.ndarray) -> str:
    return f"{round(float(returns.mean()), 3):.4g}"


def source(family: TaskFamily) -> str:
    """Where the reference agent is from, in a word."""
    if optimum_known(family):
        return "optimal"
    return "searched" if isinstance(family.env, locomotion.Locomotion) else "hand-written"


def optimum_known(family: TaskFamily) -> bool:
    return family.optimal_return is not None or family.optimal_action is not None


def measure(family: TaskFamily, num_tasks: int) -> dict[str, np.ndarray]:
    """Returns of the random and of the reference agent, ``[M]`` each."""
    drawn = tasks.sample_tasks(jax.random.key(0), family, num_tasks, split="test")
    agents = {"random": evaluation.random_returns}
    if optimum_known(family) or family.expert_action is not None:
        agents["reference"] = evaluation.reference_returns
    return {
        name: np.asarray(
            jax.jit(lambda key, drawn, agent=agent: agent(key, drawn, family=family))(
                jax.random.key(i + 1), drawn
            )
        )
        for i, (name, agent) in enumerate(agents.items())
    }


def main(main: Main) -> None:
    reports.refuse_to_overwrite(main.output)
    training.enable_compilation_cache()
    main.output.mkdir(parents=True, exist_ok=True)
    rows, results = [], {}
    for name in main.families:
        try:
            family = tasks.make(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        returns = measure(family, main.num_tasks)
        rows.append(row(name, family, returns))
        results[name] = {
            "returns": {agent: float(x.mean()) for agent, x in returns.items()},
            "content": {split: tasks.content_hash(family, split) for split in tasks.SPLITS},
        }
        num_steps = min(main.num_episodes * family.horizon, 200)
        seen = jax.jit(lambda key, family=family, n=num_steps: recorded(key, family, n))(
            jax.random.key(0)
        )
        plotting.rollout(
            main.output / f"{name}.png", seen.timestep.obs, seen.action, seen.reward, seen.last
        )
        print(f"{name}: {results[name]['returns']}", file=sys.stderr, flush=True)
    if rows:
        settings = dataclasses.asdict(main) | {"families": list(main.families)}
        reports.leave(main.output, settings, rows, families=results)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
