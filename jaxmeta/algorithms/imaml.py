r"""Implicit MAML: the meta-gradient of an adaptation that is solved, not unrolled.

Rajeswaran, Finn, Kakade & Levine 2019, "Meta-learning with implicit gradients". An inner update solves

$$φ = \mathrm{argmin}\; L(φ; D) + \tfrac{λ}{2} |φ - θ|^2, \quad\text{so that}\quad ∇L(φ; D) + λ (φ - θ) = 0,$$

and by the implicit function theorem dφ/dθ = (I + ∇²L(φ; D) / λ)^-1 (eq. 6), whatever path the solver
took and without memory for its steps. The meta-gradient applies that matrix to the outer gradient by
conjugate gradients on Hessian-vector products (algorithm 2).

In reinforcement learning L is a surrogate on the experience of the policy before the update, in ratios to
that policy. A minimum exists if λ exceeds the most negative curvature of L. A task without a minimum, as
far as conjugate gradients can tell, counts among the `skipped_tasks`. `inner_residual` tells how nearly
the inner problems were solved.

Use it where the inner loop has too many steps to differentiate through. Each task runs a solver and a linear system. Tasks whose
loss is too concave at the solution are left out, and counted.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.imaml import Config, Hyper, imaml

family = tasks.make("navigation", horizon=10)
algorithm = imaml(family, Config(num_streams=4), Hyper(step_size=0.1, proximal=4.0))
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators import surrogates
from jaxmeta.learners.gradient import (
    InnerLoss,
    Meta,
    adapted,
    inner_step,
    last_round,
    with_adapted,
)
from jaxmeta.meta_updates.conjugate_gradients import conjugate_gradients
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
        checks.ignored(self, ("rematerialize",), "in iMAML, which keeps no solver step")
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
    parts = learners.gradient_learner(family, config, policy=policy, inner_update=proximal_update)

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)
        loss = parts.loss(*last_round(history), meta.hyper, surrogates.SURROGATES["score"])
        residual = inner_residual(meta, history, parts.inner_loss, config)
        return loss, learners.gradient.report(history) | {"inner_residual": residual}

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)


def slope(
    part: Any, meta: Meta, agent: Params, data: Trajectory, loss: InnerLoss, config: Config
) -> Any:
    """The gradient of the inner problem on ``data [N, T]`` in ``part``, the adapted part of φ; zero at a solution."""

    def inner_loss(part: Any) -> jax.Array:
        return loss(with_adapted(agent, part, config), data, meta.hyper)

    def with_proximal_term(gradient: jax.Array, p: jax.Array, centre: jax.Array) -> jax.Array:
        return gradient + meta.hyper.proximal * (p - centre)

    gradient = jax.grad(inner_loss)(part)
    return jax.tree.map(with_proximal_term, gradient, part, adapted(meta.params, config))


def proximal_update(
    meta: Meta, agent: Params, data: Trajectory, *, loss: InnerLoss, config: Config
) -> Params:
    """The agent that solves the inner problem on its experience ``data [N, T]``."""
    return with_adapted(agent, solution(meta, agent, data, loss, config), config)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def solution(meta: Meta, agent: Params, data: Trajectory, loss: InnerLoss, config: Config) -> Any:
    """The minimum that gradient descent from ``agent`` finds on ``data [N, T]``, as a function of θ and of all
    parameters that are not adapted."""

    def step(_: jax.Array, part: Any) -> Any:
        return inner_step(part, meta, slope(part, meta, agent, data, loss, config), config)

    return jax.lax.fori_loop(0, config.solver_steps, step, adapted(agent, config))


def _solve(
    meta: Meta, agent: Params, data: Trajectory, loss: InnerLoss, config: Config
) -> tuple[Any, tuple]:
    part = solution(meta, agent, data, loss, config)
    return part, (part, meta, agent, data)


def _differentiate(loss: InnerLoss, config: Config, residuals: tuple, outer_gradient: Any) -> tuple:
    """The implicit function theorem: ``-(∂ slope/∂φ)^-T`` between the outer gradient and ∂ slope."""
    part, meta, agent, data = residuals

    def curvature(v: Any) -> Any:
        return jax.jvp(lambda part: slope(part, meta, agent, data, loss, config), (part,), (v,))[1]

    solved, applied = conjugate_gradients(curvature, outer_gradient, num_steps=config.cg_steps)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, applied, outer_gradient))
    # Where λ does not exceed the negative curvature, φ is no minimum and the result of conjugate
    # gradients means nothing. NaN leaves such a task out, and it is counted.
    sound = (optax.tree.vdot(solved, applied) >= 0) & (error <= optax.tree.norm(outer_gradient))
    solved = jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), solved)
    _, pull_back = jax.vjp(
        lambda meta, agent: slope(part, meta, agent, data, loss, config), meta, agent
    )
    return (*pull_back(jax.tree.map(jnp.negative, solved)), None)


solution.defvjp(_solve, _differentiate)


def inner_residual(meta: Meta, history: History, loss: InnerLoss, config: Config) -> jax.Array:
    """The slope after the last update of a history ``[K + 1]``, as a share of the slope before it, ``[]``; 0 is solved."""
    if config.num_updates == 0:
        return jnp.zeros(())
    meta, agents, data = jax.lax.stop_gradient((meta, history.agent, history.trajectories))
    before, after = (jax.tree.map(lambda x, k=k: x[k], agents) for k in (-2, -1))
    data = jax.tree.map(lambda x: x[-2], data)
    left, first = (
        optax.tree.norm(slope(adapted(phi, config), meta, before, data, loss, config))
        for phi in (after, before)
    )
    return left / jnp.maximum(first, 1e-30)
