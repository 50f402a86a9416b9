"""Action values with a memory: Q(history, action) of discrete actions, and the policies that follow them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.actor_critic import Inputs, stem_of, zero_inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.encoders import Module
from jaxmeta.networks.mlp import normalized_mlp
from jaxmeta.networks.policies import check_fits
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params


class ActionValues(NamedTuple):
    """Values of all A actions, on a memory."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    initial: Callable[[], Any]
    """``() -> state`` at the start of a trial."""
    step: Callable[[Params, Any, Inputs], tuple[jax.Array, Any]]
    """``(params, state, inputs) -> (q [A], state)``, one step; ``q`` is in the learner's units."""
    unroll: Callable[[Params, Any, Inputs], jax.Array]
    """``(params, state, inputs [T]) -> q [T, A]``: the same for a whole stream."""


def check_values_fit(family: TaskFamily, network: ActionValues) -> None:
    """Raises ValueError unless ``network`` takes the family's observations and values the family's actions."""

    def distribution_of(key: jax.Array) -> Categorical:
        q, _ = network.step(network.init(key), network.initial(), zero_inputs(family))
        return Categorical(q)

    check_fits("network", family, distribution_of)


def num_discrete_actions(user: str, family: TaskFamily) -> int:
    """A, the number of the family's actions; raises ValueError unless they are a ``Discrete`` space's."""
    space = family.action_space
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"family {family.name!r} has actions in {space!r}; {user} needs a Discrete space"
        )
    return space.n


@checks.arguments
def recurrent_action_values(
    family: TaskFamily,
    memory: Memory,
    *,
    encoder_sizes: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (64,),
    encoder: Module | None = None,
) -> ActionValues:
    """Action values on the outputs of a recurrent network that reads all inputs.

    Args:
        family: Tasks with the observations and the actions, which are discrete.
        memory: The recurrent network.
        encoder_sizes: As in `actor_critic.recurrent_actor_critic`.
        hidden_sizes: Widths of the layers between the memory and the values, each with layer normalisation
            before a ReLU.
        encoder: As in `actor_critic.recurrent_actor_critic`.

    Raises:
        ValueError: the actions are not discrete, or the encoder does not fit the observations.
    """
    num_actions = num_discrete_actions("recurrent_action_values", family)
    return recurrent_outputs(
        family,
        memory,
        num_actions,
        encoder_sizes=encoder_sizes,
        hidden_sizes=hidden_sizes,
        encoder=encoder,
    )


@checks.arguments
def recurrent_outputs(
    family: TaskFamily,
    memory: Memory,
    num_outputs: int,
    *,
    encoder_sizes: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (64,),
    encoder: Module | None = None,
    scale: float = 0.01,
) -> ActionValues:
    """A network like `recurrent_action_values` with ``num_outputs`` outputs, values or others.

    Args:
        family: Tasks with the observations and the actions.
        memory: The recurrent network.
        num_outputs: Outputs.
        encoder_sizes: As in `actor_critic.recurrent_actor_critic`.
        hidden_sizes: As in `recurrent_action_values`.
        encoder: As in `actor_critic.recurrent_actor_critic`.
        scale: Factor of the last layer's initial weights.

    Raises:
        ValueError: the encoder does not fit the observations.
    """
    sizes = checks.each_at_least("encoder_sizes", encoder_sizes, 1)
    stem = stem_of(family, sizes, encoder)
    num_features = memory.size + (stem.size if stem.beside else 0)
    head = normalized_mlp(num_features, hidden_sizes, num_outputs, scale)

    def init(key: jax.Array) -> Params:
        memory_key, head_key, *more = jax.random.split(key, 3 if stem.beside else 2)
        params = {"memory": memory.init(memory_key, stem.size), "q": head.init(head_key)}
        return params | stem.init(more[0] if stem.beside else None)

    def values(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        features = jnp.concatenate([x, y], axis=-1) if stem.beside else y
        return head.apply(params["q"], features)

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[jax.Array, Any]:
        x = stem.apply(params, inputs)
        y, state = memory.step(params["memory"], state, x, inputs.reset)
        return values(params, x, y), state

    def unroll(params: Params, state: Any, inputs: Inputs) -> jax.Array:
        x = stem.apply(params, inputs)
        y, _ = memory.unroll(params["memory"], state, x, inputs.reset)
        return values(params, x, y)

    return ActionValues(init, memory.initial, step, unroll)


def epsilon_greedy(
    q: jax.Array, epsilon: jax.Array | float, temperature: jax.Array | float = 0.0
) -> Categorical:
    """The policy that takes a uniformly random action with probability ε and the best by ``q [..., A]`` else.

    The probability of the best action is 1 - ε + ε/A, and of every other ε/A: with ε = 0 the log-probability of the
    best action is 0 and of every other -inf. Of equal values the first is the best. With a ``temperature`` τ > 0 the draw
    from ``softmax(q / τ)`` stands for the best action: it tries actions that are nearly as good.
    """
    num_actions = q.shape[-1]
    best = jax.nn.one_hot(jnp.argmax(q, axis=-1), num_actions, dtype=q.dtype)
    temperature = jnp.asarray(temperature, q.dtype)
    soft = jax.nn.softmax(q / jnp.where(temperature > 0, temperature, 1.0))
    best = jnp.where(temperature > 0, soft, best)
    return Categorical(jnp.log(epsilon / num_actions + (1.0 - epsilon) * best))
