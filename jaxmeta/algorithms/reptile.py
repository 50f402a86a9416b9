r"""Reptile: move the initialisation towards where adaptation leads.

Nichol, Achiam & Schulman 2018, "On first-order meta-learning algorithms", algorithm 2:

$$θ ← θ + ε \,\mathrm{mean}_i\, (φ_i - θ),$$

where φ_i is θ after a few policy-gradient steps in task i. The adaptation is not differentiated. The
direction θ - φ_i goes through the outer optimiser as a gradient, so plain SGD with learning rate ε is the
formula and Adam a variant that the paper allows.

The experience after the K updates makes one more update, because Reptile has no other use for it. With one
update in all (K = 0) this is joint training; the second and later updates make it meta-learning.

Use it where no derivative may go through the inner steps. It needs several of them to differ from training on the mean task.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.reptile import Config, Hyper, reptile

family = tasks.make("navigation", horizon=10)
algorithm = reptile(family, Config(num_streams=4), Hyper(step_size=0.3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.learners.gradient import Meta, first_order_step, last_round
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Task


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of Reptile that are fixed when the program is compiled: sizes, counts and choices."""

    num_updates: int = 2
    """Inner gradient steps (K) before the last round, whose experience makes one more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.ignored(self, ("rematerialize",), "in Reptile, which differentiates no update")
        if self.step_sizes != "fixed":
            raise ValueError(
                f"step_sizes={self.step_sizes!r} must be 'fixed': Reptile learns no step size"
            )
        if self.adapts != "all":
            raise ValueError(
                f"adapts={self.adapts!r} must be 'all': Reptile learns only what is adapted"
            )


class Hyper(NamedTuple):
    """Numbers of Reptile that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of the advantages; below 1 it is biased unless the baseline is exact."""
    step_size: float = 0.5
    """Inner step size α."""
    learning_rate: float = 0.3
    """ε, or the outer optimiser's step size."""
    max_grad_norm: float = 100.0
    """Clips the norm of the outer step."""


@checks.constructor()
def reptile(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.sgd,
) -> MetaAlgorithm:
    """Reptile on a family of tasks; arguments and errors as in `maml`."""
    parts = learners.gradient_learner(family, config, policy=policy, inner_update=first_order_step)

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        """A linear function of θ whose gradient is θ - φ."""
        constant = jax.lax.stop_gradient(meta)
        live_key, update_key = jax.random.split(key)
        history = parts.live(live_key, constant, task)
        adapted = parts.learner.update(update_key, constant, *last_round(history))
        direction = jax.tree.map(jnp.subtract, constant.params, adapted)
        return optax.tree.vdot(meta.params, direction), learners.gradient.report(history)

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)
