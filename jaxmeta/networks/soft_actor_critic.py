"""Networks of soft actor-critics: a squashed Gaussian policy, and two values of an action with a target network.

Actions are in *half widths*: -1 and 1 are the bounds of each entry of the action space, so that entropies and values do not
depend on the unit of actions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.actor_critic import Inputs, stem_of, zero_inputs
from jaxmeta.networks.distributions import TanhGaussian
from jaxmeta.networks.encoders import Module
from jaxmeta.networks.heads import Head, gaussian_head
from jaxmeta.networks.mlp import normalized_mlp
from jaxmeta.networks.policies import check_fits
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks import boxes
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params


class TwinValues(NamedTuple):
    """Two values of an action, of which the smaller is believed."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``, each leaf with a leading ``[2]``."""
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]
    """``(params, features [*batch, F], action [*batch, D]) -> q [2, *batch]``; actions are in half widths."""


class RecurrentSoftActorCritic(NamedTuple):
    """A policy and two action values. The policy has one memory, and the values have another."""

    init: Callable[[jax.Array], Params]
    """``(key) -> {"actor": params, "critic": params}``."""
    initial: Callable[[], Any]
    """``() -> state`` of the policy's memory at the start of a trial."""
    step: Callable[[Params, Any, Inputs], tuple[TanhGaussian, Any]]
    """``(params, state, inputs) -> (distribution, state)``: one step of the policy."""
    policies: Callable[[Params, Inputs], TanhGaussian]
    """``(params["actor"], inputs [T]) -> distributions [T]`` of a trial from its first step."""
    features: Callable[[Params, Inputs], jax.Array]
    """``(params["critic"], inputs [T]) -> [T, F]``: what the values know at each step of a trial."""
    values: Callable[[Params, jax.Array, jax.Array], jax.Array]
    """``(params["critic"], features [T, F], action [T, D]) -> q [2, T]``; actions are in half widths."""


def check_bounded(user: str, family: TaskFamily) -> None:
    """Raises ValueError, which names ``user``, unless the family's actions are a ``Box`` of floats with bounds on both sides."""
    space = family.action_space
    told = f"family {family.name!r} has actions in {space!r}; {user} needs a Box of floats"
    if not isinstance(space, spaces.Box) or boxes.is_integer(space):
        raise ValueError(f"{told}: recurrent_q takes a Discrete space, and rl2 any space")
    if not all(np.all(np.isfinite(x)) for x in boxes.bounds(space)):
        raise ValueError(f"{told} with bounds on both sides: rl2 takes any space")


def check_soft_network_fits(family: TaskFamily, network: RecurrentSoftActorCritic) -> None:
    """Raises ValueError unless ``network`` takes the family's observations and its actions are the family's."""

    def distribution_of(key: jax.Array) -> TanhGaussian:
        return network.step(network.init(key), network.initial(), zero_inputs(family))[0]

    check_fits("network", family, distribution_of)


def in_half_widths(action: jax.Array, family: TaskFamily) -> jax.Array:
    """Actions of a family ``[..., D]`` in half widths, ``[..., D]``."""
    bounds = boxes.scaled("action_space", family.action_space)
    middle, half_width = (
        jnp.broadcast_to(jnp.asarray(x, action.dtype), action.shape)
        for x in (bounds.middle, bounds.half_width)
    )
    return (action - middle) / half_width


def unit_policy(distribution: TanhGaussian) -> TanhGaussian:
    """The distribution ``[...]`` of the same actions in half widths, ``[...]``."""
    return distribution._replace(
        centre=jnp.zeros_like(distribution.centre),
        half_width=jnp.ones_like(distribution.half_width),
    )


def squashed_head(family: TaskFamily, num_features: int, hidden_sizes: Sequence[int]) -> Head:
    """A policy on features, a `TanhGaussian` whose standard deviation depends on them."""
    return gaussian_head(
        "squashed_head", num_features, family.action_space, hidden_sizes, std="state", squashed=True
    )


def twin_values(
    num_features: int, action_space: spaces.Box, hidden_sizes: Sequence[int]
) -> TwinValues:
    """Two networks from features and an action to a value, with layer normalisation before each ReLU."""
    size = int(np.prod(action_space.shape))
    network = normalized_mlp(num_features + size, hidden_sizes, 1, 0.01)

    def init(key: jax.Array) -> Params:
        return jax.vmap(network.init)(jax.random.split(key, 2))

    def apply(params: Params, features: jax.Array, action: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([features, action], axis=-1)
        return jax.vmap(network.apply, (0, None))(params, inputs)[..., 0]

    return TwinValues(init, apply)


@checks.arguments
def recurrent_soft_actor_critic(
    family: TaskFamily,
    memory: Memory,
    *,
    encoder_sizes: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (64,),
    encoder: Module | None = None,
) -> RecurrentSoftActorCritic:
    """A policy and two action values on recurrent networks of one kind, which read all inputs and share no parameter.

    Args:
        family: Tasks with the observations and the actions, a bounded ``Box``.
        memory: The recurrent network; the policy and the values have one each.
        encoder_sizes: As in `actor_critic.recurrent_actor_critic`.
        hidden_sizes: Widths of the layers between the memory and the actions, or the values.
        encoder: As in `actor_critic.recurrent_actor_critic`.

    Raises:
        ValueError: the actions are not a bounded ``Box`` of floats, or the encoder does not fit the observations.
    """
    check_bounded("recurrent_soft_actor_critic", family)
    stem = stem_of(family, checks.each_at_least("encoder_sizes", encoder_sizes, 1), encoder)
    num_features = memory.size + (stem.size if stem.beside else 0)
    policy = squashed_head(family, num_features, hidden_sizes)
    twins = twin_values(num_features, family.action_space, hidden_sizes)

    def part(key: jax.Array, head: Head | TwinValues) -> Params:
        memory_key, head_key, *more = jax.random.split(key, 3 if stem.beside else 2)
        params = {"memory": memory.init(memory_key, stem.size), "head": head.init(head_key)}
        return params | stem.init(more[0] if stem.beside else None)

    def init(key: jax.Array) -> Params:
        actor_key, critic_key = jax.random.split(key)
        return {"actor": part(actor_key, policy), "critic": part(critic_key, twins)}

    def joined(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x, y], axis=-1) if stem.beside else y

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[TanhGaussian, Any]:
        params = params["actor"]
        x = stem.apply(params, inputs)
        y, state = memory.step(params["memory"], state, x, inputs.reset)
        return policy.apply(params["head"], joined(x, y)), state  # type: ignore[return-value]

    def features(params: Params, inputs: Inputs) -> jax.Array:
        x = stem.apply(params, inputs)
        y, _ = memory.unroll(params["memory"], memory.initial(), x, inputs.reset)
        return joined(x, y)

    def policies(params: Params, inputs: Inputs) -> TanhGaussian:
        return policy.apply(params["head"], features(params, inputs))  # type: ignore[return-value]

    def values(params: Params, features: jax.Array, action: jax.Array) -> jax.Array:
        return twins.apply(params["head"], features, action)

    return RecurrentSoftActorCritic(init, memory.initial, step, policies, features, values)
