"""RoML: draw the tasks with the lowest returns more often.

Greenberg, Mannor, Chechik & Meirom 2023, "Train hard, fight easy: robust meta reinforcement learning". The objective is the mean
return of the worst share α of tasks, CVaR_α. The cross-entropy method moves the distribution that tasks are drawn from towards
those tasks, and the algorithm learns from the drawn tasks without weights.

The family says by ``parameters`` how tasks follow from D independent uniform numbers x. They are drawn from ``Beta(2 φ, 2 - 2 φ)``,
whose mean is φ; φ = 1/2 is uniform, the training distribution p. A share of each batch is drawn from p. Of the tasks whose
return is below the α-quantile of these, φ is the mean of x, with weights p / m, where m is the mixture that the batch was
drawn from. (The paper weighs by p / q without the mixture; m keeps all weights bounded.)
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from jaxmeta import checks
from jaxmeta.curricula.replay import as_dict
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.inspection import check_parameters
from jaxmeta.types import Curriculum, Draw, Meta, TaskResults

EDGE = 1e-3
"""φ stays this far from 0 and 1."""


@dataclasses.dataclass(frozen=True)
class RoMLConfig:
    """Settings of the cross-entropy method."""

    alpha: float = 0.05
    """α: the share of the worst tasks."""
    reference: float = 0.2
    """The share of a batch that is drawn from the training distribution, rounded up."""
    step: float = 0.5
    """How far φ moves to its new value: 1 forgets the old one."""
    batch: int = 128
    """Tasks from which φ is computed anew: those of the last meta-updates, as many as it takes."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.between("alpha", self.alpha, 1e-6, 1)
        checks.between("reference", self.reference, 1e-6, 1)
        checks.between("step", self.step, 0, 1)
        checks.at_least("batch", self.batch, 2)


class RoMLState(NamedTuple):
    """The distribution of tasks, and the tasks since it moved: U meta-updates of M tasks."""

    phi: jax.Array
    """``[D]``, φ: the mean of each number."""
    x: jax.Array
    """``[U, M, D]``, the numbers of the tasks."""
    returns: jax.Array
    """``[U, M]``, their returns."""
    time: jax.Array
    """``[]``, int32: meta-updates so far."""


@checks.arguments
def roml(family: TaskFamily, config: RoMLConfig = RoMLConfig()) -> Curriculum:
    """RoML on the training tasks of a family with ``parameters``.

    Use it if the worst tasks matter more than the mean. The mean return usually falls.

    Args:
        family: The family whose training tasks are drawn.
        config: The tail, and the settings of the cross-entropy method.

    Raises:
        ValueError: the family has no ``parameters``.
        tasks.InvalidEnvironment: they do not give its training tasks, as after ``dataclasses.replace(family, train=...)``.
    """
    if family.parameters is None:
        raise ValueError(
            f"family={family.name!r} has no parameters; roml needs a family whose tasks follow from independent numbers: "
            "'cartpole', 'pendulum', 'mountain_car' or 'acrobot', or your own with TaskFamily(parameters=...)"
        )
    size, task = family.parameters
    check_parameters(family)

    def init(num_tasks: int) -> RoMLState:
        updates = math.ceil(config.batch / num_tasks)
        x = jnp.full((updates, num_tasks, size), 0.5)
        return RoMLState(
            jnp.full(size, 0.5), x, jnp.zeros((updates, num_tasks)), jnp.zeros((), jnp.int32)
        )

    def draw(
        key: jax.Array, state: RoMLState, meta: Meta, num_tasks: int
    ) -> tuple[RoMLState, Draw]:
        uniform_key, beta_key = jax.random.split(key)
        uniform = jax.random.uniform(uniform_key, (num_tasks, size))
        tilted = jax.random.beta(
            beta_key, 2 * state.phi[None], 2 - 2 * state.phi[None], (num_tasks, size)
        )
        is_reference = jnp.arange(num_tasks) < _num_reference(num_tasks, config)
        x = jnp.where(is_reference[:, None], uniform, tilted)
        return state, Draw(jax.vmap(task)(x), jnp.ones(num_tasks, bool), x)

    def update(state: RoMLState, drawn: Draw, results: TaskResults) -> tuple[RoMLState, dict]:
        updates, num_tasks = state.returns.shape
        row = state.time % updates
        x = state.x.at[row].set(drawn.info)
        returns = state.returns.at[row].set(results.returns)
        moved = tail_means(state.phi, x, returns, config)
        phi = jnp.where(row == updates - 1, moved, state.phi)
        reference = results.returns[: _num_reference(num_tasks, config)]
        metrics = {
            "curriculum/reference_return": jnp.nanmean(reference),
            "curriculum/tilt": jnp.max(jnp.abs(phi - 0.5)),
        }
        return RoMLState(phi, x, returns, state.time + 1), metrics

    return Curriculum(init, draw, update, ("returns",), {"name": "roml", **as_dict(config)}, family)


def _num_reference(num_tasks: int, config: RoMLConfig) -> int:
    return math.ceil(config.reference * num_tasks)


def tail_means(phi: jax.Array, x: jax.Array, returns: jax.Array, config: RoMLConfig) -> jax.Array:
    """φ after a step of the cross-entropy method on tasks ``x [U, M, D]`` with ``returns [U, M]``, ``[D]``.

    Tasks without a return (NaN) are left out. φ stays as it is without a reference task.
    """
    num_reference = _num_reference(x.shape[1], config)
    reference = returns[:, :num_reference].reshape(-1)
    threshold = jnp.nanquantile(reference, config.alpha)
    share = num_reference / x.shape[1]
    weight = 1 / (share + (1 - share) * density(phi, x))
    weight = jnp.where(returns <= threshold, weight, 0.0)
    total = jnp.sum(weight)
    mean = jnp.sum(weight[..., None] * x, axis=(0, 1)) / jnp.where(total > 0, total, 1.0)
    moved = jnp.clip(phi + config.step * (mean - phi), EDGE, 1 - EDGE)
    return jnp.where(total > 0, moved, phi)


def density(phi: jax.Array, x: jax.Array) -> jax.Array:
    """The density of ``x [..., D]`` under independent ``Beta(2 φ, 2 - 2 φ)``, ``[...]``."""
    inside = jnp.clip(x, 1e-6, 1 - 1e-6)
    a, b = 2 * phi, 2 - 2 * phi
    shape = (1,) * (x.ndim - 1) + phi.shape
    a, b = a.reshape(shape), b.reshape(shape)
    log = (a - 1) * jnp.log(inside) + (b - 1) * jnp.log1p(-inside) - betaln(a, b)
    return jnp.exp(jnp.sum(log, axis=-1))
