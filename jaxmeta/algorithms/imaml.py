r"""Implicit MAML: the meta-gradient of an adaptation that is solved, not unrolled.

Rajeswaran, Finn, Kakade & Levine 2019, "Meta-learning with implicit gradients". An inner update solves

$$φ = \arg\min L(φ; D) + \tfrac{λ}{2} |φ - θ|^2, \quad\text{so that}\quad ∇L(φ; D) + λ (φ - θ) = 0,$$

and by the implicit function theorem dφ/dθ = (I + ∇²L(φ; D) / λ)^-1 (eq. 6), whatever path the solver
took and without memory for its steps. The meta-gradient applies that matrix to the outer gradient by
conjugate gradients on Hessian-vector products (algorithm 2).

In reinforcement learning L is a surrogate on the experience of the policy before the update, in ratios to
that policy: as φ moves away they follow. λ has to exceed its most negative curvature for a minimum to be
there. A task where it does not, as far as conjugate gradients can tell, counts among the `skipped_tasks`;
`inner_residual` says how nearly the inner problems were solved. (`rematerialize` has nothing to do here.)
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from jaxmeta import checks, learners, meta_updates
from jaxmeta.estimators import surrogates
from jaxmeta.learners.gradient import Meta, adapted, with_adapted
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, MetaAlgorithm, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of iMAML that are fixed when the program is compiled: sizes, counts and choices."""

    inner_surrogate: str = "lvc"
    """Surrogate of the inner problem. `dice` is unbiased, but its ratios of whole paths explode over
    long episodes as φ moves away from the policy that acted."""
    solver_steps: int = 8
    """Gradient steps of size α that solve the inner problem on one batch of experience."""
    cg_steps: int = 5
    """Conjugate-gradient steps of the implicit derivative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("solver_steps", self.solver_steps, 1)
        checks.at_least("cg_steps", self.cg_steps, 1)
        if self.step_sizes != "fixed":
            raise ValueError(
                f"step_sizes={self.step_sizes!r} must be 'fixed': the solution of the inner problem does "
                "not depend on how it was reached"
            )


class Hyper(NamedTuple):
    """Numbers of iMAML that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of the advantages; below 1 it is biased unless the baseline is exact."""
    step_size: float = 0.125
    """α of the inner solver."""
    proximal: float = 4.0
    """λ: how strongly φ is held near θ; 1/λ plays the part of MAML's step size."""
    learning_rate: float = 5e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""


@checks.constructor(proximal=(1e-12, 1e6))
def imaml(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """Implicit MAML on a family of tasks; arguments and errors as in `maml`."""
    parts = learners.gradient_learner(family, config, policy=policy)
    inner_surrogate = surrogates.SURROGATES[config.inner_surrogate]

    def slope(part: Any, meta: Meta, agent: Params, data: Trajectory) -> Any:
        """Zero where φ solves the inner problem; ``part`` is what is adapted of φ."""

        def loss(part: Any) -> jax.Array:
            phi = with_adapted(agent, part, config)
            return parts.loss(phi, data, meta.hyper, inner_surrogate)

        def pulled(gradient: jax.Array, p: jax.Array, centre: jax.Array) -> jax.Array:
            return gradient + meta.hyper.proximal * (p - centre)

        return jax.tree.map(pulled, jax.grad(loss)(part), part, adapted(meta.params, config))

    @jax.custom_vjp
    def solution(meta: Meta, agent: Params, data: Trajectory) -> Any:
        """The minimum that gradient descent from ``agent`` finds, as a function of θ and of all that is not adapted."""

        def step(_: jax.Array, part: Any) -> Any:
            return learners.gradient.stepped(part, meta, slope(part, meta, agent, data), config)

        return jax.lax.fori_loop(0, config.solver_steps, step, adapted(agent, config))

    def forward(meta: Meta, agent: Params, data: Trajectory) -> tuple[Any, tuple]:
        part = solution(meta, agent, data)
        return part, (part, meta, agent, data)

    def backward(residuals: tuple, outer_gradient: Any) -> tuple:
        """The implicit function theorem: ``-(∂ slope/∂φ)^-T`` between the outer gradient and ∂ slope."""
        part, meta, agent, data = residuals

        def curvature(v: Any) -> Any:
            return jax.jvp(lambda part: slope(part, meta, agent, data), (part,), (v,))[1]

        solved, _ = cg(curvature, outer_gradient, tol=1e-10, maxiter=config.cg_steps)
        applied = curvature(solved)
        error = optax.tree.norm(jax.tree.map(jnp.subtract, applied, outer_gradient))
        # Where λ does not exceed the negative curvature, φ is no minimum and conjugate gradients
        # return numbers without a meaning: such a task is to be left out and counted.
        sound = (optax.tree.vdot(solved, applied) >= 0) & (error <= optax.tree.norm(outer_gradient))
        solved = jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), solved)
        _, pull_back = jax.vjp(lambda meta, agent: slope(part, meta, agent, data), meta, agent)
        return (*pull_back(jax.tree.map(jnp.negative, solved)), None)

    solution.defvjp(forward, backward)

    def update(key: jax.Array, meta: Meta, agent: Params, data: Trajectory) -> Params:
        return with_adapted(agent, solution(meta, agent, data), config)

    learner = parts.learner._replace(update=update)
    setup = dataclasses.replace(parts.setup, learner=learner)
    parts = parts._replace(learner=learner, setup=setup)

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)
        agent, data = jax.tree.map(lambda x: x[-1], (history.agent, history.trajectories))
        loss = parts.loss(agent, data, meta.hyper, surrogates.SURROGATES["score"])
        return loss, learners.gradient.report(history) | {"inner_residual": residual(meta, history)}

    def residual(meta: Meta, history: History) -> jax.Array:
        """Slope that the last update's solver left, as a share of what it started from; 0 is solved."""
        if config.num_updates == 0:
            return jnp.zeros(())
        (before, after), data = jax.lax.stop_gradient(
            (
                [jax.tree.map(lambda x, k=k: x[k], history.agent) for k in (-2, -1)],
                jax.tree.map(lambda x: x[-2], history.trajectories),
            )
        )
        left, first = (
            optax.tree.norm(slope(adapted(phi, config), meta, before, data))
            for phi in (after, before)
        )
        return left / jnp.maximum(first, 1e-30)

    return meta_updates.follow_meta_gradient(
        task_loss,
        parts.learner,
        parts.init,
        learners.gradient.learned_part(config),
        hyper,
        optimizer,
        env_steps=parts.env_steps,
        tasks_per_chunk=config.tasks_per_chunk,
    )
