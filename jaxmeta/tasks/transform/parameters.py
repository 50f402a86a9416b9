"""Parameters drawn per task, and leaves of the state made part of it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.tasks.transform.laws import integer, number
from jaxmeta.tasks.transform.wrappers import (
    Transformed,
    TransformedParams,
    carried,
    for_each_split,
    innermost,
    replaced,
    transformed,
)
from jaxmeta.types import Task


def parameter_fields(family: TaskFamily) -> tuple[str, ...]:
    """Names of the environment's parameters that `drawn_parameters` can draw: its scalar numbers.

    The time limit is left out. An environment need not read all of its parameters: CartPole's
    ``masscart`` is dead, what counts is the ``total_mass`` made from it.
    """
    params = jax.eval_shape(lambda: innermost(family.train(jax.random.key(0))))
    return tuple(
        field.name
        for field in dataclasses.fields(params)
        if field.name != "max_steps_in_episode" and _is_number(getattr(params, field.name))
    )


def with_parameters(family: TaskFamily, **values: Any) -> TaskFamily:
    """The family with parameters of the environment, of the same types, set in every task.

    Raises:
        ValueError: a parameter is unknown.
    """
    params = jax.eval_shape(lambda: innermost(family.train(jax.random.key(0))))
    for name in values:
        checks.choice("parameter", name, [field.name for field in dataclasses.fields(params)])
    fixed = {name: np.asarray(x, getattr(params, name).dtype) for name, x in values.items()}

    def sampler(split: str) -> Sampler:
        sample = getattr(family, split)
        return lambda key: replaced(sample(key), jax.tree.map(jnp.asarray, fixed))

    return dataclasses.replace(family, **for_each_split(sampler))


def drawn_parameters(
    family: TaskFamily,
    ranges: Mapping[str, tuple[float, float]],
    *,
    law: Literal["log_uniform", "uniform"] = "log_uniform",
) -> TaskFamily:
    """The family with parameters of the environment, its physics, drawn per task, one by one.

    Train and test draw within the ranges; out of distribution all lie outside, on either side, by up to
    a quarter of the range's width (measured as the law measures it) and never with another sign.
    Integers are uniform under either law. No part is added to the task: the parameters are already there.

    Args:
        family: Of a gymnax environment, transformed or not.
        ranges: ``{name: (low, high)}``; `parameter_fields` lists the names.
        law: ``"log_uniform"``, for positive numbers, or ``"uniform"``.

    Raises:
        ValueError: a name is unknown, a range empty, or not positive for a log-uniform law.
    """
    checks.choice("law", law, ("log_uniform", "uniform"))
    known = parameter_fields(family)
    params = jax.eval_shape(lambda: innermost(family.train(jax.random.key(0))))
    dtypes = {name: getattr(params, name).dtype for name in known}
    for name, drawn_from in ranges.items():
        checks.choice("parameter", name, known)
        if not isinstance(drawn_from, tuple | list) or len(drawn_from) != 2:
            raise TypeError(f"{name}={drawn_from!r} must be a range (low, high)")
        low, high = drawn_from
        if not low < high:
            raise ValueError(f"{name}={(low, high)} must be a range (low, high) with low < high")
        if law == "log_uniform" and not low > 0 and jnp.issubdtype(dtypes[name], jnp.floating):
            raise ValueError(f"{name}={(low, high)} must be positive for law='log_uniform'")

    def draw(key: jax.Array, name: str, split: str) -> jax.Array:
        low, high = ranges[name]
        if jnp.issubdtype(dtypes[name], jnp.integer):
            drawn = integer(key, int(low), int(high), split)
        else:
            drawn = number(key, low, high, split, law=law, limits=_of_one_sign(low, high))
        return drawn.astype(dtypes[name])

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> Task:
            key, *keys = jax.random.split(key, len(ranges) + 1)
            drawn = {name: draw(k, name, split) for name, k in zip(ranges, keys, strict=True)}
            return replaced(getattr(family, split)(key), drawn)

        return sample

    return dataclasses.replace(
        family,
        name=f"drawn_parameters_{family.name}",
        **for_each_split(sampler),
        optimal_action=None,
        optimal_return=None,
        expert_action=family.expert_action or family.optimal_action,
    )


def _is_number(x: Any) -> bool:
    return x.shape == () and x.dtype != bool


def _of_one_sign(low: float, high: float) -> tuple[float, float]:
    """The numbers that a range may grow into: those of its sign."""
    return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)


@dataclasses.dataclass(frozen=True)
class Pinned(Transformed):
    """Leaves of the state have the values ``drawn``, a dict of them, from each reset on.

    Attributes:
        leaves: Names of the leaves.
    """

    leaves: tuple[str, ...]

    @property
    def nothing(self) -> dict[str, jax.Array]:
        return self.drawn_within(jax.random.key(0), self.env.default_params)

    def drawn_within(self, key: jax.Array, params: Task) -> dict[str, jax.Array]:
        """What a reset of the environment within would draw for the leaves."""
        state = innermost(self.env.reset_env(key, params)[1])
        return {name: jnp.asarray(getattr(state, name)) for name in self.leaves}

    def reset_env(self, key: jax.Array, params: TransformedParams) -> tuple[jax.Array, Any]:
        reset_key, observe_key = jax.random.split(key)
        _, state = self.env.reset_env(reset_key, params.inner)
        state = replaced(state, params.drawn)
        return self.env.observe(observe_key, state, None, params.inner), state


def pinned(
    family: TaskFamily,
    *leaves: str,
    inside: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
    outside: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
) -> TaskFamily:
    """The family with leaves of the environment's state made part of the task.

    Some environments draw what a meta-learner is to find out, a goal or a bandit's arms, in each reset: what
    was learned in one episode is wrong in the next. Pinned it is drawn once, with the task, and survives
    every reset. `IDENTITY` lists these leaves of gymnax's environments.

    Args:
        family: Of a gymnax environment, transformed or not.
        leaves: Names of fields of its state.
        inside: ``key -> {leaf: value}`` for train and test; None draws as the environment's reset does.
        outside: The same for out of distribution; None draws as ``inside`` does.

    Raises:
        ValueError: no leaf is named, or one that the state lacks.
    """
    if not leaves:
        raise ValueError("leaves=() must name at least one field of the environment's state")
    env = Pinned(family.env, leaves)
    state = jax.eval_shape(
        lambda: innermost(family.env.reset_env(jax.random.key(0), family.env.default_params)[1])
    )
    for name in leaves:
        checks.choice("leaf", name, [field.name for field in dataclasses.fields(state)])

    def draw(key: jax.Array, inner: Task, split: str) -> dict[str, jax.Array]:
        chosen = outside or inside if split == "out_of_distribution" else inside
        return env.drawn_within(key, inner) if chosen is None else chosen(key)

    return transformed(
        family,
        env,
        draw,
        prefix="pinned",
        expert_action=carried(family.expert_action or family.optimal_action),
    )
