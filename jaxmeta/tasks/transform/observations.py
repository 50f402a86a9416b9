"""Transformations of observations: permuted, masked, projected, hidden."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import composite, environments, time_limit
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform.laws import assignment
from jaxmeta.tasks.transform.wrappers import (
    Transformed,
    TransformedParams,
    Wrapper,
    box,
    carried,
    inner_return,
    observations,
    transformed,
    warn_of_no_variety,
)
from jaxmeta.types import Environment, Task


@dataclasses.dataclass(frozen=True)
class PermutedObservations(Transformed):
    """Element i of an observation is element ``drawn[i]``, int32, of the observation within."""

    axis: int | None = None
    """The axis whose slices are permuted; None permutes all elements."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.arange(_num_elements(self.env, self.axis), dtype=jnp.int32)

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return _permuted(obs, params.drawn, self.axis)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        space = super().observation_space()
        if isinstance(space, spaces.Discrete):
            return space
        return spaces.Box(np.min(space.low), np.max(space.high), space.shape, space.dtype)


@checks.arguments
def permuted_observations(family: TaskFamily, *, axis: int | None = None) -> TaskFamily:
    """The family with the elements of its observations permuted, or the slices along an axis.

    If an observation is the number of a state, the states are permuted. Splits are as in
    `permuted_actions`: with three elements or more they have no permutation in common.

    Args:
        family: Any family.
        axis: The axis whose slices are permuted; None permutes all elements.
    """
    axis = checks.field("axis", axis, int | None)
    size = _num_elements(family.env, axis)
    if size == 1:
        warn_of_no_variety(family, "one element has one order")

    def sorted_out(drawn: jax.Array, obs: jax.Array) -> jax.Array:
        return _permuted(obs, jnp.argsort(drawn), axis)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return assignment(key, size, size, split)

    return transformed(
        family,
        PermutedObservations(family.env, axis),
        draw,
        prefix="permuted_observations",
        optimal_action=carried(family.optimal_action, see=sorted_out),
        optimal_return=inner_return(family),
        expert_action=carried(family.expert_action, see=sorted_out),
    )


@dataclasses.dataclass(frozen=True)
class MaskedObservations(Transformed):
    """Elements of an observation are 0 where ``drawn``, bool of the observation's shape, is False."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(self.observation_space().shape, bool)

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return jnp.where(params.drawn, obs, jnp.zeros((), obs.dtype))

    def observation_space(self, params: Task | None = None) -> spaces.Box:
        space = super().observation_space()
        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
        return spaces.Box(low, high, space.shape, space.dtype)


@checks.arguments
def masked_observations(family: TaskFamily, *, num_hidden: int) -> TaskFamily:
    """The family with some elements of its observations replaced by zeros in all steps.

    Train and test hide different sets of ``num_hidden`` elements: sets whose indices add up to an
    even number in train, and to an odd number in test. Out of distribution twice as many elements
    are hidden. The result has no controllers.

    Args:
        family: A family with observations in a `Box`.
        num_hidden: Elements to hide, at least 1 and at most half of them.

    Raises:
        ValueError: observations are not in a `Box`, or more than half would be hidden.
    """
    shape = box(observations(family.env), family, "observations").shape
    size = math.prod(shape)
    num_hidden = checks.at_least("num_hidden", num_hidden, 1)
    if 2 * num_hidden > size:
        raise ValueError(f"num_hidden={num_hidden} must be at most half of {size}, the elements")
    if size == 2:
        warn_of_no_variety(
            family, "of two elements training hides the first, and testing the second"
        )

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        if split == "out_of_distribution":
            return (jax.random.permutation(key, size) >= 2 * num_hidden).reshape(shape)

        def another(drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key, use_key = jax.random.split(drawn[0])
            return key, jax.random.permutation(use_key, size) < num_hidden

        def of_the_other(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jnp.sum(jnp.where(drawn[1], jnp.arange(size), 0)) % 2 == (split == "train")

        hidden = jax.lax.while_loop(of_the_other, another, another((key, jnp.zeros(size, bool))))[1]
        return ~hidden.reshape(shape)

    return transformed(family, MaskedObservations(family.env), draw, prefix="masked_observations")


@dataclasses.dataclass(frozen=True)
class ProjectedObservations(Transformed):
    """Observations are ``drawn [size, O] @ obs``, the observation within flattened to ``[O]``."""

    size: int
    """Size of an observation."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.eye(self.size, math.prod(observations(self.env).shape))

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn @ jnp.ravel(obs).astype(params.drawn.dtype)

    def observation_space(self, params: Task | None = None) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (self.size,), jnp.float32)


@checks.arguments
def projected_observations(family: TaskFamily, *, size: int) -> TaskFamily:
    """The family with observations projected by a random matrix ``[size, O]`` with orthonormal rows or columns.

    The first entry of the matrix is positive in train and test and negative out of distribution. If
    ``size`` is at least O, no information is lost, and controllers are kept.

    Args:
        family: A family with observations in a `Box`.
        size: Size of a projected observation.
    """
    size = checks.at_least("size", size, 1)
    shape = box(observations(family.env), family, "observations").shape
    within = math.prod(shape)
    if size == within == 1:
        warn_of_no_variety(family, "of one element there is one projection in training")

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        matrix = jax.nn.initializers.orthogonal()(key, (size, within), float)
        wrong = (matrix[0, 0] < 0) != (split == "out_of_distribution")
        return jnp.where(wrong, -matrix, matrix)

    def back(drawn: jax.Array, obs: jax.Array) -> jax.Array:
        return (drawn.T @ obs).reshape(shape)

    whole = size >= within
    return transformed(
        family,
        ProjectedObservations(family.env, size),
        draw,
        prefix="projected_observations",
        optimal_action=carried(family.optimal_action, see=back) if whole else None,
        optimal_return=inner_return(family) if whole else None,
        expert_action=carried(family.expert_action, see=back) if whole else None,
    )


@dataclasses.dataclass(frozen=True)
class HiddenObservations(Wrapper):
    """Observations without some of their entries."""

    kept: tuple[int, ...]
    """Indices of the entries, or the slices, that remain."""
    axis: int | None
    """The axis whose slices are hidden; None means entries of the flat observation."""

    def see(self, obs: jax.Array, params: Task) -> jax.Array:
        return jnp.take(obs, np.asarray(self.kept), axis=self.axis)

    def observation_space(self, params: Task | None = None) -> spaces.Box:
        space = super().observation_space()
        low, high = (
            np.take(np.broadcast_to(x, space.shape), self.kept, axis=self.axis)
            for x in (space.low, space.high)
        )
        return spaces.Box(low, high, low.shape, space.dtype)


@checks.arguments
def hidden(
    family: TaskFamily, entries: Sequence[int | str], *, axis: int | None = None
) -> TaskFamily:
    """The family without some entries of its observations, in all tasks alike.

    It hides what a learner must find out: the goal that FourRooms shows, the velocities of a pole. The tasks are those
    of ``family``. Its optimal return is that of an agent that is told the task and sees everything, so it is kept;
    controllers are not, for they need the entries.

    Args:
        family: A family with observations in a `Box`, or of several parts. The rest of several parts is one flat
            array (see `composite`): a network sees no parts any more.
        entries: Indices of the entries to remove from the flat observation, which becomes ``[O - len(entries)]``; or
            of the slices along ``axis``; or names of the parts of a dictionary.
        axis: The axis whose slices are removed, for example the channels of an image.

    Raises:
        ValueError: there is no such entry, an entry is named twice, or none would be left.
    """
    shape = box(observations(family.env), family, "observations").shape
    axis = checks.field("axis", axis, int | None)
    size = _num_elements(family.env, axis)
    if isinstance(entries, tuple | list) and any(isinstance(x, str) for x in entries):
        inner = time_limit.without_limit(family.env)
        declared = environments.declared_observation_space(inner)
        named = [composite.entries_of(declared, x) if isinstance(x, str) else [x] for x in entries]
        entries = [i for part in named for i in part]
    numbers = checks.each_at_least("entries", entries, 0)  # type: ignore[arg-type]
    checks.some("entries", numbers)
    checks.distinct("entries", numbers)
    for entry in numbers:
        if entry >= size:
            raise ValueError(
                f"entries={numbers!r} must be below {size}, the number of entries of observations of shape {shape}"
            )
    if len(numbers) == size:
        raise ValueError(f"entries={numbers!r} would leave nothing of observations of {size}")
    kept = tuple(i for i in range(size) if i not in numbers)
    return dataclasses.replace(
        family,
        name=f"hidden_{family.name}",
        env=HiddenObservations(family.env, kept, axis),
        optimal_action=None,
        expert_action=None,
        action_features=None,
    )


def _num_elements(env: Environment, axis: int | None) -> int:
    """The number of elements to permute."""
    space = observations(env)
    if not isinstance(space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"env={environments.name_of(env)!r} has observations in {space}, where a Box or Discrete is needed"
        )
    if axis is None:
        return space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    if not 0 <= axis < len(space.shape):
        raise ValueError(f"axis={axis} must be one of the {len(space.shape)} of {space}, or None")
    return space.shape[axis]


def _permuted(obs: jax.Array, order: jax.Array, axis: int | None) -> jax.Array:
    """``obs [...]`` with its elements, or its slices along an axis, in the given order."""
    if obs.ndim == 0:  # the number of a state
        return order[obs.astype(order.dtype)].astype(obs.dtype)
    return jnp.take(obs, order, axis=axis).reshape(obs.shape)
