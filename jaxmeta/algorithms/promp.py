r"""Proximal meta-policy search.

Rothfuss et al. 2019, "ProMP: proximal meta-policy search", algorithm 1. Experience of one lifetime a
task is recorded under θ_o, then used for several steps on

$$J^{ProMP}(θ) = J^{CLIP}(θ) - η \,KL(π_{θ_o}, π_θ) \quad\text{(eq. 11 and 12)}$$

with the likelihood-ratio objective J^LR inside (the surrogate `lvc`, whose curvature has low variance) and
PPO's clipped objective outside. The Kullback-Leibler divergence is between the policies before each inner
update, on the experience before it, summed over updates. Both objectives have ratios to the recorded
policies. Every step takes the inner updates again, from its own θ.

Use it in place of MAML where environment steps are dear: it learns several times from the same experience. A meta-update takes
about six times MAML's time. Its limits are MAML's.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.promp import Config, Hyper, promp

family = tasks.make("navigation", horizon=10)
algorithm = promp(family, Config(num_streams=4), Hyper(step_size=0.3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners, meta_updates, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.streams import without_broken_streams
from jaxmeta.learners.gradient import GradientLearner, Meta, last_round, learned_part, mean_kl
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import History, MetaAlgorithm, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of ProMP that are fixed when the program is compiled: sizes, counts and choices."""

    num_epochs: int = 5
    """Outer gradient steps on the same experience."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_epochs", self.num_epochs, 1)


class Hyper(NamedTuple):
    """Numbers of ProMP that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of the advantages; below 1 it is biased unless the baseline is exact."""
    step_size: float = 0.5
    """Inner step size α; where it is learned, what it starts from."""
    learning_rate: float = 5e-3
    """Step size of the outer optimiser, an epoch."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""
    clip: float = 0.3
    """ε: ratios beyond 1 ± ε earn nothing more."""
    kl_cost: float = 5e-4
    """η, in return per step for one nat per step."""


@checks.constructor()
def promp(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """ProMP on a family of tasks; arguments and errors as in `maml`."""
    parts = learners.gradient_learner(family, config, policy=policy)
    part = learned_part(config)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        return meta_updates.first_state(parts.init(key, hyper), part, optimizer)

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        key = quick(key)
        keys, recorded = learners.gradient.record(key, state.meta, tasks, parts=parts)

        def epoch(state: State, _: None) -> tuple[State, dict]:
            gradient, metrics = meta_updates.meta_gradient(
                lambda learned, key, history: promp_loss(
                    part.combine(state.meta, learned), key, history, parts
                ),
                part.partition(state.meta),
                keys,
                recorded,
                tasks_per_chunk=config.tasks_per_chunk,
            )
            applied = meta_updates.is_applicable(metrics, len(keys))
            transform = meta_updates.outer_optimizer(optimizer, state.meta.hyper)
            state = meta_updates.descend(state, gradient, part, transform, apply=applied)
            metrics["skipped_updates"] = jnp.asarray(~applied, jnp.int32)
            return state, metrics

        after, rows = jax.lax.scan(epoch, state, length=config.num_epochs)
        metrics = of_last_epoch(rows)
        metrics["env_steps"] = jnp.asarray(len(keys) * parts.env_steps, jnp.int32)
        # The epochs are one meta-update, applied if any of them was.
        num_updates = jnp.minimum(after.num_updates, state.num_updates + 1)
        return after._replace(num_updates=num_updates), metrics

    return MetaAlgorithm(init, step, parts.learner, parts.setup.collects(restart=True))


def promp_loss(
    meta: Meta, key: jax.Array, recorded: History, parts: GradientLearner
) -> tuple[jax.Array, dict]:
    """Minus J^ProMP in one task on its recorded lifetime ``[K + 1]``: ``(loss [], report)``."""
    data = recorded.trajectories
    replayed = rollouts.replay(key, meta, data, learner=parts.learner)
    clipped = partial(surrogates.ppo_clip, epsilon=meta.hyper.clip)
    loss = parts.loss(*last_round(replayed), meta.hyper, clipped)

    def divergence(old: Params, new: Params, data: Trajectory) -> jax.Array:
        data, good = without_broken_streams(data)
        return mean_kl(parts.distribution(old, data), parts.distribution(new, data), good)

    before_updates = jax.tree.map(lambda x: x[:-1], (recorded.agent, replayed.agent, data))
    kl = jnp.sum(jax.vmap(divergence)(*before_updates))
    return loss + meta.hyper.kl_cost * kl, {"kl": kl} | learners.gradient.report(recorded)


def of_last_epoch(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of a meta-update: the last row of its epochs' metrics, each ``[E]``.

    ``skipped_tasks`` is the most that an epoch skipped; an update is skipped if every epoch skipped it.
    """
    return jax.tree.map(lambda row: row[-1], rows) | {
        "skipped_tasks": jnp.max(rows["skipped_tasks"]),
        "skipped_updates": jnp.min(rows["skipped_updates"]),
    }
