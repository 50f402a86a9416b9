"""Algorithm distillation: a sequence model learns to learn by imitating the histories of another learner.

Laskin et al. 2023, "In-context reinforcement learning with algorithm distillation". A history is all that a learner did in one
task, in the order in which it learned: poor episodes first, good ones last. The network predicts each action from all that
came before it in a window of the history. A window of several episodes shows how actions improve, and the
network learns to improve them, too. At test time its weights are frozen, its memory starts empty, and returns rise from
episode to episode. Windows of a single episode do not show improvement, and the network does not learn to improve from them.

$$L = -\\mathrm{mean}_t \\log π(a_t | o_t, \\text{and all earlier } (o, a, r) \\text{ of the window})$$

Use it where you have histories of a learner that is slow or cannot be trained further, or an expert that you can make worse:
`datasets.record` writes the histories of any learner of the library, `datasets.mixtures` of an expert that acts at random less and less (Zisman et
al. 2024, "Emergence of in-context reinforcement learning from noise distillation"). Training needs no environment. Rewards are inputs
alone: nothing is learned from their sum. Do not count on a better policy than the one that the histories end with.

```python
import jax
from jaxmeta import datasets, evaluation, tasks
from jaxmeta.algorithms.algorithm_distillation import Config, algorithm_distillation
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

family = tasks.make("dark_room", size=5, horizon=10)
drawn = tasks.sample_tasks(jax.random.key(0), family, 64, split="train")
histories = datasets.mixtures(jax.random.key(1), drawn, family=family, num_streams=4, num_episodes=20)

algorithm = algorithm_distillation(family, Config(num_episodes=20), memory=gru(32))
source = datasets.windows(histories, 80)
run = training.train(algorithm, family, training.Config(meta_updates=100, num_tasks=32), source=source)

held_out = tasks.sample_tasks(jax.random.key(2), family, 20, split="test")
trials = evaluation.trials(
    jax.random.key(3), run.state.meta, held_out, learner=algorithm.learner, env=family.env, num_steps=200
)
print(evaluation.episode_returns(trials, 20).mean(axis=0))
```
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.learners import in_context
from jaxmeta.learners.in_context import Hyper
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.actor_critic import ActorCritic
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(in_context.Config):
    """Settings of algorithm distillation that are fixed when the program is compiled: sizes, counts and choices."""


@checks.constructor("windows")
def algorithm_distillation(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    network: ActorCritic | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """Algorithm distillation on histories of a family's tasks.

    Args:
        family: The tasks' family.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``.
        memory: The recurrent network, for example ``transformer(64, context=80, num_layers=4)``; None makes the one that
            ``config`` names.
        network: The policy with its memory; None puts a policy on ``memory``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Returns:
        A `MetaAlgorithm` whose ``step`` takes windows of histories, ``Trajectory [M, T]``: train it with
        ``source=datasets.windows(...)``.

    Raises:
        ValueError: a value of ``hyper`` is out of range; a setting has no effect beside the others; in ``step``, the
            windows are not of the family or shorter than the context of a transformer that ``config`` names, or their number
            is no multiple of ``config.num_minibatches``.
    """
    parts = in_context.in_context_learner(
        family,
        config,
        hyper,
        num_streams=1,
        memory=memory,
        network=network,
        optimizer=optimizer,
    )

    named = memory is None and network is None and config.memory == "transformer"
    context = (config.context or config.num_episodes * family.horizon) if named else 1

    def step(key: jax.Array, state: State, windows: Trajectory) -> tuple[State, dict]:
        check_windows(windows, family)
        if windows.reward.shape[1] < context:
            raise ValueError(
                f"windows of {windows.reward.shape[1]} steps are shorter than the transformer's context={context}, so it would "
                "look further back at test time than in training: set context to the windows' length"
            )
        good = finite_streams(windows)
        counted = jnp.broadcast_to(good[:, None], windows.reward.shape)
        data = in_context.without_broken(windows, counted)
        action, counted = in_context.predictable(data.action, counted, family)
        state, metrics = parts.imitate(key, state, data, action, counted)
        return state, metrics | {"env_steps": jnp.zeros((), jnp.int32)}

    recurrent = parts.recurrent
    return MetaAlgorithm(parts.init, step, recurrent.learner, recurrent.lifetime)


def check_windows(windows: Trajectory, family: TaskFamily) -> None:
    """Raises unless ``windows`` are trajectories ``[M, T]`` with the family's observations and actions."""
    checks.instance("windows", windows, Trajectory)
    checks.shapes("MT", **{"windows.reward": windows.reward})
    batch = windows.reward.shape
    for name, x, shape in (
        ("timestep.obs", windows.timestep.obs, family.observation_shape),
        ("action", windows.action, tuple(family.action_space.shape)),
    ):
        if x.shape != (*batch, *shape):
            raise ValueError(
                f"windows.{name} has shape {x.shape}; with family {family.name!r} it must be [M, T, ...] = {(*batch, *shape)}"
            )
