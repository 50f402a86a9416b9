r"""MAML with a trust region around the outer step.

Finn et al. 2017, section 5.3, as its authors ran it: the meta-gradient g is followed under trust-region
policy optimisation (Schulman et al. 2015). With D(θ) the mean over tasks of KL(π_{φ_K(θ_o)}, π_{φ_K(θ)})
on experience after adaptation and F its Hessian at θ_o,

$$θ = θ_o - 2^{-i} \sqrt{2 δ / x^⊤ F x} \; x, \quad F x = g \quad\text{(F damped, throughout)}$$

for the first i at which the surrogate loss falls and D stays below δ. F is never formed. Because D has
neither value nor slope at θ_o, its Hessian is exactly J^T M J, J the derivative of the adapted policy's
distributions in θ (through the inner updates) and M the divergence's Hessian in the distributions: first
derivatives of the adaptation suffice where the Hessian of D by automatic differentiation takes third.

Use it where a meta-update must not change the adapted policy by more than a given divergence. Each meta-update solves a linear
system by conjugate gradients, a product with the Fisher matrix for each of `cg_steps`.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.maml_trpo import Config, Hyper, maml_trpo

family = tasks.make("navigation", horizon=10)
algorithm = maml_trpo(family, Config(num_streams=4, cg_steps=3), Hyper(step_size=0.3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.streams import without_broken_streams
from jaxmeta.learners.gradient import (
    GradientLearner,
    Meta,
    combine,
    last_round,
    mean_kl,
    partition,
)
from jaxmeta.meta_updates.conjugate_gradients import conjugate_gradients
from jaxmeta.meta_updates.gradients import State, guarded_gradient, map_tasks, masked_mean
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import History, MetaAlgorithm, Params, Task


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of MAML-TRPO that are fixed when the program is compiled: sizes, counts and choices."""

    cg_steps: int = 10
    """Conjugate-gradient steps for the direction."""
    max_backtracks: int = 15
    """Halvings of the step before it is given up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("cg_steps", self.cg_steps, 1)
        checks.at_least("max_backtracks", self.max_backtracks, 0)


class Hyper(NamedTuple):
    """Numbers of MAML-TRPO that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of the advantages; below 1 it is biased unless the baseline is exact."""
    step_size: float = 0.5
    """Inner step size α; where it is learned, what it starts from."""
    max_kl: float = 0.01
    """δ: how far a meta-update may move the adapted policies, in nats per step."""
    damping: float = 1e-2
    """Added to F's diagonal: F is of low rank, and float32 cannot follow how flat it is elsewhere."""


@checks.constructor(max_kl=(1e-12, 1e6), damping=(0, 1e6))
def maml_trpo(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
) -> MetaAlgorithm:
    """MAML-TRPO on a family of tasks; arguments and errors as in `maml`, without an optimiser."""
    parts = learners.gradient_learner(family, config, policy=policy)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        return State(parts.init(key, hyper), (), jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        key = quick(key)
        hyper, theta = state.meta.hyper, partition(state.meta, config)
        lived = learners.gradient.record(key, state.meta, tasks, parts=parts)
        batch = MetaBatch(parts, config, state.meta, *lived)
        gradient, metrics, good = guarded_gradient(
            batch.task_loss, theta, *lived, tasks_per_chunk=config.tasks_per_chunk
        )

        def fisher_product(v: dict) -> dict:
            product = batch.mean(partial(batch.fisher_product, theta, v), good)
            return jax.tree.map(lambda p, x: p + hyper.damping * x, product, v)

        def measure(theta: dict) -> tuple[jax.Array, jax.Array]:
            return batch.mean(partial(batch.loss_and_kl, theta), good)

        direction, applied = conjugate_gradients(
            fisher_product, gradient, num_steps=config.cg_steps
        )
        theta, found = line_search(
            theta,
            direction,
            optax.tree.vdot(direction, applied),
            loss_before=metrics.pop("surrogate"),
            measure=measure,
            max_kl=hyper.max_kl,
            max_backtracks=config.max_backtracks,
        )
        metrics |= {
            "kl": jnp.where(found.applied, found.kl, 0.0),
            "backtracks": found.backtracks,
            "skipped_updates": jnp.asarray(~found.applied, jnp.int32),
            "env_steps": jnp.asarray(len(lived[0]) * parts.env_steps, jnp.int32),
        }
        num_updates = state.num_updates + found.applied.astype(jnp.int32)
        return State(combine(state.meta, theta, config), (), num_updates), metrics

    return MetaAlgorithm(init, step, parts.learner, parts.setup.collects(restart=True))


@dataclasses.dataclass(frozen=True)
class MetaBatch:
    """A meta-batch's experience under θ_o, and functions of θ on it. θ is the learned part of ``meta``."""

    parts: GradientLearner
    """The learner and its functions."""
    config: Config
    """Sizes, counts and choices."""
    meta: Meta
    """θ_o and all that is not learned."""
    keys: jax.Array
    """``[M]``, the lifetimes' keys."""
    histories: History
    """``[M, K + 1]``, the recorded lifetimes."""

    def agent(self, theta: dict, key: jax.Array, history: History) -> Params:
        """The agent that adaptation from θ would have made of a recorded lifetime."""
        meta = combine(self.meta, theta, self.config)
        data = history.trajectories
        return last_round(rollouts.replay(key, meta, data, learner=self.parts.learner))[0]

    def loss_and_kl(
        self, theta: dict, key: jax.Array, history: History
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of θ in one task, and KL(π_{φ_K(θ_o)}, π_{φ_K(θ)}), both ``[]``."""
        new, (old, data) = self.agent(theta, key, history), last_round(history)
        # Off the recorded policy only each action's ratio to the recorded policy matters: lvc's value.
        loss = self.parts.loss(new, data, self.meta.hyper, surrogates.SURROGATES["lvc"])
        data, good = without_broken_streams(data)
        before, after = self.parts.distribution(old, data), self.parts.distribution(new, data)
        return loss, mean_kl(before, after, good)

    def task_loss(
        self, theta: dict, key: jax.Array, history: History
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of θ in one task: ``(loss [], report)``, the loss in the report too."""
        loss, _ = self.loss_and_kl(theta, key, history)
        return loss, learners.gradient.report(history) | {"surrogate": loss}

    def fisher_product(self, theta: dict, v: dict, key: jax.Array, history: History) -> dict:
        """One task's part of ``F v``: ``J^T M J v``."""
        data, good = without_broken_streams(last_round(history)[1])

        def policies(theta: dict) -> Distribution:
            return self.parts.distribution(self.agent(theta, key, history), data)

        old, change = jax.linearize(policies, theta)
        slope = jax.grad(partial(mean_kl, old, good=good))
        _, curved = jax.jvp(slope, (old,), (change(v),))  # M J v
        return jax.linear_transpose(change, theta)(curved)[0]  # J^T M J v

    def mean(self, function: Callable[[jax.Array, History], Any], good: jax.Array) -> Any:
        """The mean of ``function(key, history)`` over ``good`` tasks ``[M]``; not finite if one of them is not."""
        results = map_tasks(
            lambda lived: function(*lived),
            (self.keys, self.histories),
            tasks_per_chunk=self.config.tasks_per_chunk,
        )
        return masked_mean(results, good)


class Found(NamedTuple):
    """The end of a line search, each ``[]``."""

    applied: jax.Array
    """bool: whether a step was acceptable."""
    kl: jax.Array
    """D of the last step that was tried, in nats per step."""
    backtracks: jax.Array
    """int32: halvings."""


def line_search(
    theta: dict,
    direction: dict,
    length: jax.Array,
    *,
    loss_before: jax.Array,
    measure: Callable[[dict], tuple[jax.Array, jax.Array]],
    max_kl: jax.Array,
    max_backtracks: int,
) -> tuple[dict, Found]:
    """θ after the first acceptable step against ``direction``, or as it was if there is none.

    Args:
        theta: θ_o.
        direction: x.
        length: ``x^T F x []``.
        loss_before: The loss at θ_o, ``[]``.
        measure: ``(theta) -> (loss [], kl [])``.
        max_kl: δ, ``[]``.
        max_backtracks: Halvings before the search gives up.
    """
    scale = jnp.sqrt(2 * max_kl / jnp.maximum(length, 1e-30))

    def moved(backtracks: jax.Array) -> dict:
        step = jnp.ldexp(scale, -backtracks)
        return jax.tree.map(lambda p, x: p - step * x, theta, direction)

    def acceptable(loss: jax.Array, kl: jax.Array) -> jax.Array:
        # A step that breaks a task has a NaN for its loss, so it is not acceptable.
        return (loss < loss_before) & (kl <= max_kl)

    def goes_on(search: tuple) -> jax.Array:
        return ~acceptable(*search[1:]) & (search[0] < max_backtracks) & (length > 0)

    def try_next(search: tuple) -> tuple:
        backtracks = search[0] + 1
        return (backtracks, *measure(moved(backtracks)))

    untried = (
        jnp.asarray(-1, jnp.int32),
        jnp.full_like(loss_before, jnp.inf),
        jnp.full_like(scale, jnp.inf),
    )
    backtracks, loss, kl = jax.lax.while_loop(goes_on, try_next, untried)
    applied = acceptable(loss, kl)
    after = jax.tree.map(lambda new, old: jnp.where(applied, new, old), moved(backtracks), theta)
    return after, Found(applied, kl, jnp.maximum(backtracks, 0))
