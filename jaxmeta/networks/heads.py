"""Heads of policies: from features to distributions of actions, of the kind that an action space needs."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.distributions import (
    Categorical,
    DiagGaussian,
    Distribution,
    FactoredCategorical,
    TanhGaussian,
)
from jaxmeta.networks.mlp import mlp
from jaxmeta.tasks import boxes
from jaxmeta.types import Params


class Head(NamedTuple):
    """A policy that reads features instead of observations."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``, ``{"body": ..., "head": ...}``."""
    apply: Callable[[Params, jax.Array], Distribution]
    """``(params, x [*batch, F]) -> distributions [*batch]``."""


Std = Literal["parameter", "state"]
"""The standard deviation of a Gaussian policy: a ``parameter``, alike in all states, or an output of the network."""

LOG_STD_REACH = 4.0
"""A standard deviation that depends on the state is at most this far from the initial one, in logarithms."""


@checks.arguments
def action_head(
    num_features: int,
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (),
    *,
    initial_std: float = 1.0,
    std: Std = "parameter",
    squashed: bool = False,
) -> Head:
    """A tanh network from features to distributions of actions, of the kind that the space needs.

    That is a `Categorical` for a `Discrete`, a `FactoredCategorical` for a `MultiDiscrete` or a `Box` of integers,
    and for a `Box` of floats a `DiagGaussian`, or with ``squashed`` a `TanhGaussian`. `gaussian_mlp` explains the
    last three arguments.

    Raises:
        ValueError: the space has no bounds where they are needed, or more than one axis; ``std`` or ``squashed`` is
            given for a space that is not a `Box` of floats.
    """
    num_features = checks.at_least("num_features", num_features, 1)
    gaussian = dict(initial_std=initial_std, std=std, squashed=squashed)
    if has_categories(action_space):
        if gaussian != dict(initial_std=1.0, std="parameter", squashed=False):
            raise ValueError(
                f"initial_std={initial_std}, std={std!r} and squashed={squashed} need a Box of floats, and the action "
                f"space is {action_space!r}: leave them at their defaults"
            )
        return categorical_head(num_features, action_space, hidden_sizes)
    return gaussian_head("action_head", num_features, action_space, hidden_sizes, **gaussian)  # type: ignore[arg-type]


def categorical_head(
    num_features: int, action_space: spaces.Discrete | spaces.Box, hidden_sizes: Sequence[int]
) -> Head:
    """The head of a space whose actions are chosen from categories; nearly uniform at first."""
    if _is_discrete(action_space):
        network = mlp(num_features, hidden_sizes, action_space.n, 0.01)
        return Head(network.init, lambda params, x: Categorical(network.apply(params, x)))
    low, sizes = boxes.categories("action_space", action_space)
    network = mlp(num_features, hidden_sizes, int(np.sum(sizes)), 0.01)
    category = np.arange(np.max(sizes))
    there = category[None, :] < sizes[:, None]  # [D, A]
    place = np.where(there, (np.cumsum(sizes) - sizes)[:, None] + category[None, :], 0)

    def apply(params: Params, x: jax.Array) -> FactoredCategorical:
        outputs = network.apply(params, x)[..., place]
        logits = jnp.where(jnp.broadcast_to(there, outputs.shape), outputs, -jnp.inf)
        return FactoredCategorical(logits, jnp.broadcast_to(jnp.asarray(low), logits.shape[:-1]))

    return Head(network.init, apply)


def gaussian_head(
    user: str,
    num_features: int,
    action_space: spaces.Space,
    hidden_sizes: Sequence[int],
    initial_std: float = 1.0,
    std: Std = "parameter",
    squashed: bool = False,
) -> Head:
    """The head of a `Box` of floats; errors name ``user``. `policies.gaussian_mlp` explains the arguments."""
    squashed = checks.field("squashed", squashed, bool)
    centre, scale = _range(user, action_space, squashed)
    initial_std = checks.between("initial_std", initial_std, 1e-12, 1e6)
    checks.choice("std", std, ("parameter", "state"))
    size = len(scale)
    network = mlp(num_features, hidden_sizes, size if std == "parameter" else 2 * size, 0.01)

    def init(key: jax.Array) -> Params:
        params = network.init(key)
        if std == "state":
            return params
        log_std = jnp.full(size, math.log(initial_std), float)
        return {"body": params["body"], "head": {"mean": params["head"], "log_std": log_std}}

    def outputs(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation, in half widths."""
        if std == "state":
            mean, raw = jnp.split(network.apply(params, x), 2, axis=-1)
            return mean, math.log(initial_std) + LOG_STD_REACH * jnp.tanh(raw / LOG_STD_REACH)
        mean = network.apply({"body": params["body"], "head": params["head"]["mean"]}, x)
        return mean, jnp.broadcast_to(params["head"]["log_std"], mean.shape)

    def apply(params: Params, x: jax.Array) -> DiagGaussian | TanhGaussian:
        mean, log_std = outputs(params, x)
        at, width, log_width = (
            jnp.broadcast_to(jnp.asarray(x, mean.dtype), mean.shape)
            for x in (centre, scale, np.log(scale))
        )
        if squashed:
            return TanhGaussian(mean, log_std, at, width)
        return DiagGaussian(at + width * mean, log_std + log_width)

    return Head(init, apply)


def _range(user: str, action_space: spaces.Space, squashed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Middles and half widths of the nominal range of a `Box` of floats, ``[D]`` each; ``squashed`` needs bounds."""
    if _is_discrete(action_space):
        raise ValueError(
            f"{user} needs a continuous action space (Box), not {action_space!r}; "
            "use categorical_mlp or softmax_linear"
        )
    shape = tuple(action_space.shape)
    if len(shape) != 1:
        raise ValueError(
            f"{user} needs actions of one axis, not of shape {shape}; flatten the action space"
        )
    nominal = boxes.scaled("action_space", action_space)
    if squashed and not all(np.all(np.isfinite(x)) for x in boxes.bounds(action_space)):
        raise ValueError(
            f"squashed=True needs bounds on both sides of all entries of {action_space!r}; leave it off"
        )
    return nominal.middle, nominal.half_width


def count_actions(user: str, action_space: spaces.Space) -> int:
    """The number of actions; raises ValueError, which names ``user``, unless the space is a `Discrete`."""
    if not _is_discrete(action_space):
        raise ValueError(
            f"{user} needs a discrete action space, not {action_space!r}; use gaussian_mlp"
        )
    return action_space.n


def _is_discrete(action_space: spaces.Space) -> TypeGuard[spaces.Discrete]:
    """Whether actions are discrete; raises ValueError unless the space is a `Discrete` with actions or a `Box`."""
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise ValueError(f"action_space={action_space!r} must be Discrete or Box")
    if isinstance(action_space, spaces.Discrete) and action_space.n < 1:
        raise ValueError(f"action_space={action_space!r} must have at least one action")
    return isinstance(action_space, spaces.Discrete)


def has_categories(action_space: spaces.Space) -> bool:
    """Whether actions are chosen from categories: a `Discrete`, a `MultiDiscrete` or a `Box` of integers."""
    return _is_discrete(action_space) or boxes.is_integer(action_space)
