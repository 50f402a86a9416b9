"""Parameters that are drawn per task, and leaves of the state that become part of the task."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks
from jaxmeta.tasks import derived
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.tasks.transform.laws import integer, number
from jaxmeta.tasks.transform.wrappers import (
    Transformed,
    TransformedParams,
    Wrapper,
    all_equal,
    carried,
    for_each_split,
    innermost,
    replaced,
    transformed,
    warn_of_no_variety,
)
from jaxmeta.types import Task


@checks.arguments
def parameter_fields(family: TaskFamily) -> tuple[str, ...]:
    """Names of the environment's parameters that `drawn_parameters` can draw: the scalar numbers.

    The time limit is left out, and parameters that follow from others (see `tasks.derived`), like CartPole's
    ``total_mass``. An environment need not read all of its parameters.
    """
    params = _parameters(family)
    left_out = ("max_steps_in_episode", *derived.fixed_by_others(params))
    return tuple(
        field.name
        for field in dataclasses.fields(params)
        if field.name not in left_out and _is_number(getattr(params, field.name))
    )


@checks.arguments
def with_parameters(family: TaskFamily, **values: Any) -> TaskFamily:
    """The family with some parameters of the environment set in every task.

    A value has the shape and the kind of its parameter: boolean, integer or real. An integer may
    stand for a real number. Casts change numbers only by rounding. Parameters of gymnax's CartPole and Acrobot that
    follow from others are derived anew (see `tasks.derived`); those of your own environment are not.

    Raises:
        ValueError: a parameter is unknown, or follows from others; a value is of another shape, not finite, or too large for
            the parameter.
        TypeError: a value is of another kind.
    """
    checks.some("values", values)
    params = _parameters(family)
    for name in values:
        checks.choice("parameter", name, [field.name for field in dataclasses.fields(params)])
    derived.refuse_derived(params, values)
    fixed = {name: _fitting(name, x, getattr(params, name)) for name, x in values.items()}

    def sampler(split: str) -> Sampler:
        sample = getattr(family, split)
        return lambda key: _with_physics(sample(key), jax.tree.map(jnp.asarray, fixed))

    own = for_each_split(sampler) | dict(mutate=None, parameters=None)
    return dataclasses.replace(family, **own)


@checks.arguments
def drawn_parameters(
    family: TaskFamily,
    ranges: Mapping[str, tuple[float, float]],
    *,
    law: Literal["log_uniform", "uniform"] = "log_uniform",
) -> TaskFamily:
    """The family with parameters of the environment, such as its physics, drawn per task and independently.

    Train and test draw within the ranges. Out of distribution all parameters lie outside, on either
    side, by up to a quarter of the range's width (on the law's scale) and never with another sign.
    Integers are uniform under either law. The task's structure does not change. Parameters of gymnax's CartPole and
    Acrobot that follow from others are derived anew (see `tasks.derived`): with ``{"length": (0.3, 1.0)}`` CartPole's
    ``polemass_length`` follows. Those of your own environment are not.

    Args:
        family: A family of a gymnax environment, transformed or not.
        ranges: ``{name: (low, high)}``; `parameter_fields` lists the names.
        law: ``"log_uniform"``, for positive numbers, or ``"uniform"``.

    Raises:
        ValueError: no name is given, a name is unknown, or its parameter follows from others; a range is empty, or not positive for a
            log-uniform law; an end is not finite, or too large for the parameter.
        TypeError: an end is no number, or no integer although the parameter is one.
    """
    checks.choice("law", law, ("log_uniform", "uniform"))
    checks.some("ranges", ranges)
    known, params = parameter_fields(family), _parameters(family)
    derived.refuse_derived(params, ranges)
    ends, dtypes = {}, {}
    for name, drawn_from in ranges.items():
        checks.choice("parameter", name, known)
        if not isinstance(drawn_from, tuple | list) or len(drawn_from) != 2:
            raise TypeError(f"{name}={drawn_from!r} must be a range (low, high)")
        low, high = (_fitting(name, x, getattr(params, name)) for x in drawn_from)
        if not low < high:
            raise ValueError(f"{name}={drawn_from} must be a range (low, high) with low < high")
        dtypes[name] = low.dtype
        ends[name] = low, high = low.item(), high.item()
        if law == "log_uniform" and not low > 0 and jnp.issubdtype(dtypes[name], jnp.floating):
            raise ValueError(f"{name}={drawn_from} must be positive for law='log_uniform'")

    def draw(key: jax.Array, name: str, split: str) -> jax.Array:
        low, high = ends[name]
        if jnp.issubdtype(dtypes[name], jnp.integer):
            drawn = integer(key, low, high, split)
        else:
            drawn = number(key, low, high, split, law=law, limits=_of_one_sign(low, high))
        return drawn.astype(dtypes[name])

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> Task:
            key, *keys = jax.random.split(key, len(ranges) + 1)
            drawn = {name: draw(k, name, split) for name, k in zip(ranges, keys, strict=True)}
            return _with_physics(getattr(family, split)(key), drawn)

        return sample

    return dataclasses.replace(
        family,
        name=f"drawn_parameters_{family.name}",
        **for_each_split(sampler),
        optimal_action=None,
        optimal_return=None,
        expert_action=family.expert_action or family.optimal_action,
        mutate=None,
        parameters=None,
    )


def _parameters(family: TaskFamily) -> Any:
    """Shapes of the environment's parameters; static parameters have their values."""
    return jax.eval_shape(lambda: innermost(family.train(jax.random.key(0))))


def _with_physics(task: Task, fields: dict[str, Any]) -> Task:
    """The task with parameters replaced, and with those that follow from them."""
    params = derived.with_derived(innermost(task).replace(**fields), fields)
    new = {x.name: getattr(params, x.name) for x in dataclasses.fields(params)}
    return replaced(task, new)


def _is_number(x: Any) -> bool:
    is_array = hasattr(x, "shape") and hasattr(x, "dtype")
    return is_array and x.shape == () and jnp.issubdtype(x.dtype, np.number)


_KINDS = {
    "b": ("true or false", "b"),
    "i": ("an integer", "iu"),
    "u": ("an integer", "iu"),
    "f": ("a real number", "iuf"),
}
"""By the kind of an array: the name of its numbers, and the kinds that may stand for it."""


def _fitting(name: str, value: Any, like: Any) -> np.ndarray:
    """The ``value`` as an array of the shape and dtype of ``like``; see `with_parameters`."""
    kind = getattr(getattr(like, "dtype", None), "kind", None)
    if kind not in _KINDS:
        raise TypeError(
            f"{name}={value!r} cannot be set: in the tasks it is {like}, which is no array of numbers"
        )
    wanted, right = _KINDS[kind]
    if like.shape:
        wanted = f"an array of shape {like.shape}, each {wanted}"
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):  # traced, or rows of several lengths
        given = np.asarray(None)
    if given.dtype.kind not in right:
        raise TypeError(f"{name}={value!r} must be {wanted}")
    if given.shape != like.shape:
        raise ValueError(f"{name}={value!r} has shape {given.shape}; it must be {wanted}")
    with np.errstate(over="ignore"):
        cast = given.astype(like.dtype)
    if not np.all(np.isfinite(cast)) or (given.dtype.kind != "f" and np.any(cast != given)):
        raise ValueError(
            f"{name}={value!r} must be {wanted} that is finite and that {like.dtype} holds"
        )
    return cast


def _of_one_sign(low: float, high: float) -> tuple[float, float]:
    """The limits within which a range may grow without a change of sign."""
    return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)


@dataclasses.dataclass(frozen=True)
class Pinned(Transformed):
    """At each reset leaves of the state get the values ``drawn``, a dict by name."""

    leaves: tuple[str, ...]
    """Names of the leaves."""

    ends_by = Wrapper.ends_by  # the overridden methods end no episode

    @property
    def nothing(self) -> dict[str, jax.Array]:
        return self.drawn_within(jax.random.key(0), self.env.default_params)

    def drawn_within(self, key: jax.Array, params: Task) -> dict[str, jax.Array]:
        """The leaves as a reset of the environment within draws them."""
        state = innermost(self.env.reset_env(key, params)[1])
        return {name: jnp.asarray(getattr(state, name)) for name in self.leaves}

    def reset_env(self, key: jax.Array, params: TransformedParams) -> tuple[jax.Array, Any]:
        reset_key, observe_key = jax.random.split(key)
        _, state = self.env.reset_env(reset_key, params.inner)
        state = replaced(state, params.drawn)
        return self.env.observe(observe_key, state, None, params.inner), state


Law = Callable[[jax.Array], dict[str, jax.Array]]
"""``key -> {leaf: value}``."""


@checks.arguments
def pinned(
    family: TaskFamily,
    *leaves: str,
    inside: Law | None = None,
    outside: Law | None = None,
) -> TaskFamily:
    """The family with leaves of the environment's state made part of the task.

    Some environments draw the unknown that a meta-learner must find out, such as a goal or a
    bandit's arms, at each reset. Then knowledge from one episode is wrong in the next. A pinned
    leaf is drawn once, with the task, and survives every reset. `IDENTITY` lists such leaves of
    gymnax's environments. A UserWarning tells if all tasks are the same, for example because the
    environment draws only when a parameter says so.

    Args:
        family: A family of a gymnax environment, transformed or not.
        leaves: Names of fields of its state.
        inside: ``key -> {leaf: value}`` for train and test; None draws as the environment's reset
            does.
        outside: ``key -> {leaf: value}`` for out of distribution; None draws as ``inside`` does.

    Raises:
        ValueError: no leaf is named, or the state lacks a leaf.
    """
    checks.some("leaves", leaves)
    checks.distinct("leaves", leaves)
    env = Pinned(family.env, leaves)
    state = jax.eval_shape(
        lambda: innermost(env.env.reset_env(jax.random.key(0), env.env.default_params)[1])
    )
    if not dataclasses.is_dataclass(state):
        raise ValueError(
            f"family={family.name!r} has a state of type {type(state).__name__}; a flax dataclass with the field "
            f"{leaves[0]!r} is needed: else let the sampler draw what the reset draws"
        )
    for name in leaves:
        checks.choice("leaf", name, [field.name for field in dataclasses.fields(state)])

    inside = inside and _checked_law("inside", inside, leaves, state)
    outside = _checked_law("outside", outside, leaves, state) if outside else inside

    def draw(key: jax.Array, inner: Task, split: str) -> dict[str, jax.Array]:
        law = outside if split == "out_of_distribution" else inside
        return env.drawn_within(key, inner) if law is None else law(key)

    law = inside or (lambda key: env.drawn_within(key, family.train(key)))
    if all_equal(law):
        names = " and ".join(leaves)
        warn_of_no_variety(
            family,
            f"inside draws one and the same {names}"
            if inside
            else f"every reset draws the same {names}{_switches(family, env)}",
        )

    return transformed(
        family,
        env,
        draw,
        prefix="pinned",
        expert_action=carried(family.expert_action or family.optimal_action),
    )


def _checked_law(name: str, law: Law, leaves: tuple[str, ...], state: Any) -> Law:
    """The law with its values in the state's dtypes; raises TypeError unless it draws all leaves."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        drawn = law(key)
        if not isinstance(drawn, dict) or drawn.keys() != set(leaves):
            raise TypeError(f"{name}(key)={drawn!r} must be a dict of {leaves}")
        return {
            leaf: _like(f"{name}(key)[{leaf!r}]", drawn[leaf], getattr(state, leaf))
            for leaf in leaves
        }

    jax.eval_shape(draw, jax.random.key(0))
    return draw


def _like(name: str, value: Any, like: Any) -> jax.Array:
    """``value`` in the dtype of ``like``, and of its shape ``[...]``; raises TypeError if shape or kind differ."""
    value = jnp.asarray(value)
    _, right = _KINDS.get(like.dtype.kind, ("", like.dtype.kind))
    if value.shape != like.shape or value.dtype.kind not in right:
        raise TypeError(
            f"{name} is {value.dtype.name}{list(value.shape)}; in the state it is {like.dtype.name}{list(like.shape)}"
        )
    return value.astype(like.dtype)


def _switches(family: TaskFamily, env: Pinned) -> str:
    """The end of a sentence that names the parameters which make the environment draw the pinned leaves."""
    params = family.train(jax.random.key(0))
    found = []
    for field in dataclasses.fields(innermost(params)):
        value = getattr(innermost(params), field.name)
        if np.shape(value) == () and np.asarray(value).dtype == bool and not value:
            switched = replaced(params, {field.name: jnp.ones((), bool)})
            if not all_equal(functools.partial(env.drawn_within, params=switched)):
                found.append(f"{field.name}=True")
    if not found:
        return ""
    return f"; with_parameters(family, {' or '.join(found)}) makes it draw them"
