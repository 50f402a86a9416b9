"""Learned optimisers of agents: what an agent's gradient does to its parameters is learned.

`open_optimizer` is OPEN (Goldie et al. 2024, "Can learned optimization make reinforcement learning less difficult?"). It reads
momenta of the gradient, and what is special about reinforcement learning: how much of the agent's life is over, how far an
update is through its epochs, how deep in the network a parameter lies, and how dormant its unit is.

`update_rules.rule_learner` and `learned_objective` take a learned optimiser in the place of an optax optimiser, beside any rule
of `update_rules`: `a2c`, `dpo`, or a rule that is learned with it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmeta import checks
from jaxmeta.networks.learned_optimizer import optimizer_network
from jaxmeta.types import Params


class Progress(NamedTuple):
    """An optimiser's inputs about an agent, beside the gradient."""

    life: jax.Array
    """``[]``, the share of the agent's updates that are over."""
    epoch: jax.Array
    """``[]``, the share of the present update's epochs that are over."""
    dormancy: Params
    """A tree like the agent's parameters: the activity of the unit that a parameter feeds, where 1 is the mean of its layer."""


class LearnedOptimizer(NamedTuple):
    """An optimiser with parameters of its own. An agent's parameters are ``{"policy": ..., "prediction": ...}``."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params`` of the optimiser."""
    birth: Callable[[Params], Any]
    """``(agent_params) -> state`` of a newborn agent."""
    step: Callable[..., tuple[Params, Any]]
    """``(key, params, step_size [], progress, gradient, state, agent_params) -> (agent_params, state)``."""


class State(NamedTuple):
    """The state of `open_optimizer`."""

    momenta: Params
    """A tree like the agent's parameters with a leading ``[6]``: moving averages of the gradient."""
    memory: jax.Array
    """``[P, H]``, the network's memory of each of the agent's P parameters."""


MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
"""The shares of themselves that moving averages of the gradient keep in a step."""

NUM_SIGNALS = 1 + 2 * (len(MOMENTUM_DECAYS) + 1)
"""Features that are scaled: the parameter, and sign and logarithm of momenta and gradient."""

NUM_FEATURES = NUM_SIGNALS + 4
"""Inputs of the network: share of life, layer, share of epochs and dormancy come last."""

SCALE = 1e-3
"""The units of the network's outputs."""

TINY = 1e-8
"""The number at which logarithms of absolute values begin. It is also added to mean squares of features."""


@checks.arguments
def open_optimizer(
    *, memory_size: int = 8, hidden_sizes: Sequence[int] = (16, 16)
) -> LearnedOptimizer:
    """OPEN (Goldie et al. 2024), a network that every parameter of policy and prediction goes through by itself.

    It reads `features` and says o. With ``u = α (0.001 o₁ exp(0.001 o₂) + 0.001 o₃ ε)``, of which the noise ε ~ N(0, 1) is for the
    policy alone, a parameter p becomes ``p - (u - mean(u))``. The mean is over all parameters of both networks. α is the agents' ``step_size``: 1 is the paper's.

    At first o is zero, so agents stay what they are at birth. The paper starts all weights from zero; here those of hidden layers are
    random, or what the last layer's weights do would have no derivative. No derivative runs through the features: the
    optimiser is made for evolution strategies, and a meta-gradient takes what it reads as data.

    Args:
        memory_size: Units of the GRU.
        hidden_sizes: Layers between the GRU and the outputs.
    """
    network = optimizer_network(NUM_FEATURES, 3, memory_size=memory_size, hidden_sizes=hidden_sizes)

    def birth(agent_params: Params) -> State:
        momenta = jax.tree.map(lambda p: jnp.zeros((len(MOMENTUM_DECAYS), *p.shape)), agent_params)
        return State(momenta, network.initial(sum(p.size for p in jax.tree.leaves(agent_params))))

    def step(
        key: jax.Array,
        params: Params,
        step_size: jax.Array,
        progress: Progress,
        gradient: Params,
        state: State,
        agent_params: Params,
    ) -> tuple[Params, State]:
        momenta = jax.tree.map(updated_momenta, state.momenta, gradient)
        x = jax.lax.stop_gradient(features(progress, gradient, momenta, agent_params))
        o, memory = network.apply(params, state.memory, x)
        moves = SCALE * o[:, 0] * jnp.exp(SCALE * o[:, 1])
        noise = SCALE * o[:, 2] * jax.random.normal(key, moves.shape, moves.dtype)
        flat, unravel = ravel_pytree(agent_params)
        u = step_size * (moves + jnp.where(of_policy(agent_params), noise, 0.0))
        return unravel(flat - (u - jnp.mean(u))), State(momenta, memory)

    return LearnedOptimizer(network.init, birth, step)


def updated_momenta(momenta: jax.Array, gradient: jax.Array) -> jax.Array:
    """The moving averages ``[6, ...]`` of a parameter's gradients, from 0, after one more ``gradient [...]``."""
    shape = (len(MOMENTUM_DECAYS), *[1] * gradient.ndim)
    decay = jnp.asarray(MOMENTUM_DECAYS, gradient.dtype).reshape(shape)
    new = (1.0 - decay) * jnp.broadcast_to(gradient[None], momenta.shape)
    return decay * momenta + new


def features(
    progress: Progress, gradient: Params, momenta: Params, agent_params: Params
) -> jax.Array:
    """The inputs ``[P, 19]`` of OPEN's network, in the order of the agent's flattened parameters.

    The parameter, sign and ``log(|.| + 1e-8)`` of each momentum and of the gradient, all in units of their root mean square over
    the array that the parameter is in; the share of life; the layer, 0 for the first and 1 for the last; the share of epochs;
    and the dormancy.
    """
    layers = {name: layer_places(part) for name, part in agent_params.items()}

    def of_array(
        p: jax.Array, g: jax.Array, m: jax.Array, place: float, dormancy: jax.Array
    ) -> jax.Array:
        signals = [p]
        for x in (*m, g):
            signals += [jnp.sign(x), jnp.log(jnp.abs(x) + TINY)]
        x = jnp.stack([s.reshape(-1) for s in signals], axis=-1)
        size = jnp.sqrt(jnp.mean(x**2, axis=0, keepdims=True) + TINY)
        told = [jnp.broadcast_to(s, p.shape) for s in (progress.life, place, progress.epoch)]
        rest = jnp.stack([s.reshape(-1).astype(x.dtype) for s in (*told, dormancy)], axis=-1)
        return jnp.concatenate([x / jnp.broadcast_to(size, x.shape), rest], axis=-1)

    rows = jax.tree.map(of_array, agent_params, gradient, momenta, layers, progress.dormancy)
    return jnp.concatenate(jax.tree.leaves(rows))


def layer_places(params: Params) -> Params:
    """The place of each array of a network in its depth, a tree like ``params``: 0 in the first layer, 1 in the last.

    Arrays side by side, such as a kernel and its bias, are of one layer. An encoder comes first, then a body's layers by
    their numbers, then the head. A network of one layer has its arrays at 0.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    layers = [tuple(getattr(at, "key", str(at)) for at in path[:-1]) for path, _ in paths]

    def order(layer: tuple) -> list:
        names = re.split(r"(\d+)", "/".join(map(str, layer)))
        return [names[0].split("/")[0] != "encoder", [int(x) if x.isdigit() else x for x in names]]

    ordered = sorted(set(layers), key=order)
    last = max(len(ordered) - 1, 1)
    return jax.tree.unflatten(structure, [ordered.index(layer) / last for layer in layers])


def dormancies(params: Params, activity: dict[str, jax.Array]) -> Params:
    """`Progress.dormancy` of a network of `mlp`: a tree like its ``params``.

    ``activity`` has the mean absolute output ``[size]`` of each unit of a hidden layer, by the layer's name. The outputs of a
    network are not hidden units: what feeds them counts as the mean, 1.
    """
    ones = jax.tree.map(jnp.ones_like, params)
    layers = ones["body"].get("params", {})
    for name, active in activity.items():
        share = active / (jnp.mean(active) + TINY)
        layers[name] = jax.tree.map(lambda x, s=share: jnp.broadcast_to(s, x.shape), layers[name])
    return ones


def of_policy(agent_params: Params) -> np.ndarray:
    """Which of the agent's flattened parameters are the policy's, bool ``[P]``."""
    parts = {
        name: jax.tree.map(lambda x, mine=name == "policy": np.full(x.size, mine), part)
        for name, part in agent_params.items()
    }
    return np.concatenate(jax.tree.leaves(parts))
