r"""MAML with a trust region around the outer step.

Finn et al. 2017, section 5.3, as its authors ran it: the meta-gradient g is followed under trust-region
policy optimisation (Schulman et al. 2015). With D(θ) the mean over tasks of KL(π_{φ_K(θ_o)}, π_{φ_K(θ)})
on experience after adaptation and F its Hessian at θ_o,

$$θ = θ_o - 2^{-i} \sqrt{2 δ / x^⊤ F x} \; x, \quad F x = g \quad\text{(F damped, throughout)}$$

for the first i at which the surrogate loss falls and D stays below δ. F is never formed. Because D has
neither value nor slope at θ_o, its Hessian is exactly J^T M J, J the derivative of the adapted policy's
distributions in θ (through the inner updates) and M the divergence's Hessian in the distributions: first
derivatives of the adaptation suffice where the Hessian of D by automatic differentiation takes third.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from jaxmeta import checks, learners, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.streams import without_broken_streams
from jaxmeta.learners.gradient import Meta, combine, mean_kl, partition
from jaxmeta.meta_updates.gradients import State, guarded_gradient, map_tasks, masked_mean
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, MetaAlgorithm, Params, Task, Trajectory


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
    # Off the recorded policy all that matters is the ratio of each action to the one that acted.
    surrogate = surrogates.SURROGATES["lvc"]

    def last_round(history: History) -> tuple[Params, Trajectory]:
        return jax.tree.map(lambda x: x[-1], (history.agent, history.trajectories))

    def adapted(meta: Meta, key: jax.Array, recorded: History) -> Params:
        """The agents that ``meta`` would have made of the recorded experience."""
        return last_round(rollouts.replay(key, meta, recorded.trajectories, learner=parts.learner))[
            0
        ]

    def surrogate_and_kl(meta: Meta, key: jax.Array, recorded: History) -> tuple:
        """The loss in one task and how far its adapted policy is from the one that acted."""
        agent = adapted(meta, key, recorded)
        old, data = last_round(recorded)
        loss = parts.loss(agent, data, meta.hyper, surrogate)
        data, good = without_broken_streams(data)
        return loss, mean_kl(parts.distribution(old, data), parts.distribution(agent, data), good)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        return State(parts.init(key, hyper), (), jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        hyper, theta = state.meta.hyper, partition(state.meta, config)
        keys, recorded = lived = learners.gradient.record(key, state.meta, tasks, parts, config)

        def meta(theta: dict) -> Meta:
            return combine(state.meta, theta, config)

        def task_loss(theta: dict, key: jax.Array, recorded: History) -> tuple[jax.Array, dict]:
            return surrogate_and_kl(meta(theta), key, recorded)[0], learners.gradient.report(
                recorded
            )

        gradient, metrics, good_tasks = guarded_gradient(
            task_loss, theta, keys, recorded, tasks_per_chunk=config.tasks_per_chunk
        )

        def mean(function: Callable[[tuple], Any]) -> Any:
            """Over the tasks that the gradient is of; not finite where it is not in one of them."""
            results = map_tasks(function, lived, tasks_per_chunk=config.tasks_per_chunk)
            return masked_mean(results, good_tasks)

        def fisher_product(v: dict) -> dict:
            """``F v``, damped."""

            def of_task(lived: tuple) -> dict:
                key, recorded = lived
                data, good = without_broken_streams(last_round(recorded)[1])

                def policies(theta: dict) -> Distribution:
                    return parts.distribution(adapted(meta(theta), key, recorded), data)

                old, moved = jax.jvp(policies, (theta,), (v,))  # J v
                slope = jax.grad(partial(mean_kl, jax.lax.stop_gradient(old), good=good))
                _, curved = jax.jvp(slope, (old,), (moved,))  # M J v
                return jax.vjp(policies, theta)[1](curved)[0]  # J^T M J v

            return jax.tree.map(lambda p, x: p + hyper.damping * x, mean(of_task), v)

        direction, _ = cg(fisher_product, gradient, tol=1e-10, maxiter=config.cg_steps)
        length = optax.tree.vdot(direction, fisher_product(direction))
        scale = jnp.sqrt(2 * hyper.max_kl / jnp.maximum(length, 1e-30))

        def moved(backtracks: jax.Array) -> dict:
            step = jnp.ldexp(scale, -backtracks)
            return jax.tree.map(lambda p, x: p - step * x, theta, direction)

        def measure(theta: dict) -> tuple[jax.Array, jax.Array]:
            return mean(lambda lived: surrogate_and_kl(meta(theta), *lived))

        loss_before, _ = measure(theta)

        def acceptable(loss: jax.Array, kl: jax.Array) -> jax.Array:
            # A step that breaks a task has no loss, and is not acceptable.
            return (loss < loss_before) & (kl <= hyper.max_kl)

        def halve(search: tuple) -> tuple:
            backtracks = search[0] + 1
            return (backtracks, *measure(moved(backtracks)))

        backtracks, *found = jax.lax.while_loop(
            lambda search: (
                ~acceptable(*search[1:]) & (search[0] < config.max_backtracks) & (length > 0)
            ),
            halve,
            (jnp.zeros((), jnp.int32), *measure(moved(jnp.zeros((), jnp.int32)))),
        )
        applied = acceptable(*found)
        theta = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old), moved(backtracks), theta
        )
        metrics |= {
            "kl": jnp.where(applied, found[1], 0.0),
            "backtracks": backtracks,
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(len(keys) * parts.env_steps, jnp.int32),
        }
        return State(meta(theta), (), state.num_updates + applied.astype(jnp.int32)), metrics

    return MetaAlgorithm(init, step, parts.learner)
