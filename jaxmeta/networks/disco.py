"""The networks of DiscoRL: those of an agent, and the meta-network that is its update rule.

Oh et al. 2025, "Discovering state-of-the-art reinforcement learning algorithms", with the sizes and the names of the
published weights (Disco103).

An agent has a policy and four more outputs. `y` [m] and, for each action, `z` [m] are predictions whose meaning the rule
invents. `q` are categorical action values, and `aux` predicts the policy at the next step. The meta-network reads what the
agent and its slow copy say of a piece of experience, backwards, and says what the policy, `y` and `z` should be.

The parameters of the meta-network are a dict of arrays by the names of the published file. Its functions take a batch of B
pieces of T steps; ``T + 1`` has the time step after the last one too.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks import dense
from jaxmeta.networks.mlp import obs_size
from jaxmeta.types import Params

MAX_VALUE = 300
"""The largest squashed value that `q` can say."""

NUM_BINS = 2 * MAX_VALUE + 1
"""The categories of `q`: the whole numbers from -`MAX_VALUE` to `MAX_VALUE`."""

SQUASH = 1e-3
"""The slope of `squash` far from 0."""


class Outputs(NamedTuple):
    """The outputs of an agent's network at observations ``[*batch]``."""

    logits: jax.Array
    """``[*batch, A]``, of the policy."""
    y: jax.Array
    """``[*batch, m]``, logits of the prediction of states."""
    z: jax.Array
    """``[*batch, A, m]``, logits of the predictions of actions."""
    aux: jax.Array
    """``[*batch, A, A]``, logits of the policy after each action."""
    q: jax.Array
    """``[*batch, A, NUM_BINS]``, logits of action values."""


class AgentNetwork(NamedTuple):
    """The network of an agent."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    apply: Callable[[Params, jax.Array], Outputs]
    """``(params, obs [*batch, *obs_shape]) -> outputs [*batch]``."""


def agent_network(
    obs_shape: Sequence[int],
    num_actions: int,
    *,
    num_predictions: int = 600,
    hidden_sizes: Sequence[int] = (512, 512),
    model_size: int = 128,
) -> AgentNetwork:
    """An agent's network: a torso, linear heads, and a model of one step of each action.

    The torso is a ReLU network whose last layer is linear. Policy and y are linear in its output. For the rest a linear layer
    and its tanh are the cell and the output of an LSTM, which reads the one-hot action. Three networks read the LSTM.

    Args:
        obs_shape: The shape of an observation, which is flattened.
        num_actions: A.
        num_predictions: m.
        hidden_sizes: Layers of the torso.
        model_size: Units of the LSTM, and of the hidden layer of each network that reads it.
    """
    sizes = (obs_size(obs_shape), *checks.each_at_least("hidden_sizes", hidden_sizes, 1))
    checks.some("hidden_sizes", sizes[1:])
    m = checks.at_least("num_predictions", num_predictions, 1)
    k = checks.at_least("model_size", model_size, 1)
    a = checks.at_least("num_actions", num_actions, 1)
    layers = [f"torso_{i}" for i in range(len(sizes) - 1)]
    heads = {"z": m, "aux": a, "q": NUM_BINS}
    shapes = dict(zip(layers, itertools.pairwise(sizes), strict=True))
    shapes |= {"logits": (sizes[-1], a), "y": (sizes[-1], m), "root": (sizes[-1], k)}
    shapes |= {"model": (a + k, 4 * k)}
    shapes |= {f"{name}_0": (k, k) for name in heads}
    shapes |= {f"{name}_1": (k, size) for name, size in heads.items()}
    small = dict.fromkeys(("logits", "y"), 0.01)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        return {
            name: {
                "kernel": truncated_normal(at, shape, small.get(name)),
                "bias": jnp.zeros(shape[-1]),
            }
            for at, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params: Params, obs: jax.Array) -> Outputs:
        x = obs.reshape(*obs.shape[: obs.ndim - len(obs_shape)], -1)
        x = x.astype(params["root"]["bias"].dtype)
        for name in layers[:-1]:
            x = jax.nn.relu(dense.apply(params[name], x))
        x = dense.apply(params[layers[-1]], x)
        cell = dense.apply(params["root"], x)
        kernel = params["model"]["kernel"]
        # A one-hot action picks a row of the kernel.
        given = kernel[:a] + params["model"]["bias"][None]
        gates = (jnp.tanh(cell) @ kernel[a:])[..., None, :]
        shape = (*cell.shape[:-1], a, 4 * k)
        gates = jnp.broadcast_to(gates, shape) + jnp.broadcast_to(given, shape)
        h, _ = lstm_cell(gates, jnp.broadcast_to(cell[..., None, :], (*shape[:-1], k)))

        def read(name: str) -> jax.Array:
            return dense.apply(
                params[f"{name}_1"], jax.nn.relu(dense.apply(params[f"{name}_0"], h))
            )

        logits, y = dense.apply(params["logits"], x), dense.apply(params["y"], x)
        return Outputs(logits, y, *map(read, heads))

    return AgentNetwork(init, apply)


def lstm_cell(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(output [..., k], cell [..., k])`` after a step of an LSTM.

    ``gates [..., 4 k]`` are those of writing, of the candidate, of keeping, to which 1 is added, and of reading.
    """
    write, candidate, keep, read = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(keep + 1.0) * cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(read) * jnp.tanh(cell), cell


def truncated_normal(key: jax.Array, shape: Sequence[int], std: float | None = None) -> jax.Array:
    """A normal draw of a ``shape`` that is cut off at two standard deviations, times ``std``; None is one over the root of the
    inputs."""
    if std is None:
        std = 1.0 / math.sqrt(math.prod(shape[:-1]))
    return std * jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape))


def squash(x: jax.Array) -> jax.Array:
    """``h(x) = sign(x) (sqrt(|x| + 1) - 1) + x / 1000`` of ``x [...]``: Pohlen et al. 2018, "Observe and look further", prop. A.2."""
    # |x| / (sqrt(|x| + 1) + 1) is the same as sqrt(|x| + 1) - 1, and exact near 0.
    return x / (jnp.sqrt(jnp.abs(x) + 1.0) + 1.0) + SQUASH * x


def unsquash(y: jax.Array) -> jax.Array:
    """The inverse of `squash`, of ``y [...]``."""
    # With |x| = u (u + 2) it is SQUASH u^2 + (1 + 2 SQUASH) u = |y|, whose root needs no difference.
    slope = 1.0 + 2.0 * SQUASH
    u = 2.0 * jnp.abs(y) / (slope + jnp.sqrt(slope**2 + 4.0 * SQUASH * jnp.abs(y)))
    return jnp.sign(y) * u * (u + 2.0)


def values_of(logits: jax.Array) -> jax.Array:
    """The values ``[...]`` of categorical values with ``logits [..., NUM_BINS]``."""
    return unsquash(jax.nn.softmax(logits) @ bins(logits))


def two_hot(value: jax.Array) -> jax.Array:
    """Probabilities ``[..., NUM_BINS]`` of the two bins next to the squashed ``value [...]``, whose mean it is."""
    x = jnp.clip(squash(value), -MAX_VALUE, MAX_VALUE)[..., None]
    shape = (*value.shape, NUM_BINS)
    away = jnp.broadcast_to(x, shape) - jnp.broadcast_to(bins(value), shape)
    return jax.nn.relu(1.0 - jnp.abs(away))


def bins(like: jax.Array) -> jax.Array:
    """The bins ``[NUM_BINS]`` in the dtype of ``like``."""
    return jnp.arange(-MAX_VALUE, MAX_VALUE + 1, dtype=like.dtype)


class Sizes(NamedTuple):
    """The sizes of a meta-network; the defaults are those of the published weights."""

    num_predictions: int = 600
    """m."""
    hidden_size: int = 256
    """Units of the LSTM that reads pieces."""
    memory_size: int = 128
    """Units of the LSTM that lives as long as the agent."""


NUM_INPUTS, NUM_ACTION_INPUTS, EMBEDDING_SIZE, NUM_CHANNELS = 27, 9, 16, 2
LIFE = "lstm/~/meta_lstm/~unroll"
"""The beginning of the names of the LSTM that lives as long as the agent."""


def shapes(sizes: Sizes = Sizes()) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of a meta-network, by their names."""
    m, h, k = sizes
    e, c = EMBEDDING_SIZE, NUM_CHANNELS
    kernels: dict[str, tuple[int, ...]] = {
        "lstm/linear": (k, h),
        "lstm/linear_1": (h, 1),
        "lstm/linear_2": (h, m),
        "lstm/linear_3": (h, m),
        "lstm/linear_4": (e, 1),
        "lstm/lstm/linear": (NUM_INPUTS + h, 4 * h),
        "lstm/sequential_1/conv1_d": (1, 2 * (h + c), e),
        f"{LIFE}/lstm/linear": (e + k, 4 * k),
        f"{LIFE}/mlp_2/~/linear_0": (NUM_INPUTS + 2, e),
    }
    for at in ("lstm", LIFE):
        for name in ("mlp", "mlp_1"):
            kernels |= {f"{at}/{name}/~/linear_0": (m, e), f"{at}/{name}/~/linear_1": (e, 1)}
        kernels |= {f"{at}/sequential/conv1_d": (1, 2 * NUM_ACTION_INPUTS, e)}
        kernels |= {f"{at}/sequential/conv1_d_1": (1, 2 * e, c)}
    every = {f"{name}/w": shape for name, shape in kernels.items()}
    every |= {f"{name}/b": shape[-1:] for name, shape in kernels.items()}
    return dict(sorted(every.items()))


STD = {"lstm/linear/w": 1.0} | {f"lstm/linear_{i}/w": 0.3 for i in range(1, 5)}
"""Initial standard deviations of the weights by which the paper's meta-network speaks; for all others see `truncated_normal`."""


def init(key: jax.Array, sizes: Sizes = Sizes()) -> Params:
    """New parameters of a meta-network: `truncated_normal` weights and zero biases."""
    every = shapes(sizes)
    keys = jax.random.split(key, len(every))
    return {
        name: truncated_normal(at, shape, STD.get(name)) if name[-1] == "w" else jnp.zeros(shape)
        for at, (name, shape) in zip(keys, every.items(), strict=True)
    }


class Experience(NamedTuple):
    """The inputs of a meta-network from B pieces. Names with ``slow`` are of the agent's slow copy."""

    policy: jax.Array
    """``[B, T + 1, A]``, π: probabilities."""
    behaviour: jax.Array
    """``[B, T, A]``, μ: the probabilities by which the agent acted."""
    slow_policy: jax.Array
    """``[B, T + 1, A]``, π'."""
    y: jax.Array
    """``[B, T + 1, m]``, logits."""
    slow_y: jax.Array
    """``[B, T + 1, m]``, logits."""
    z: jax.Array
    """``[B, T + 1, A, m]``, logits."""
    slow_z: jax.Array
    """``[B, T + 1, A, m]``, logits."""
    action: jax.Array
    """``[B, T]``, integers."""
    reward: jax.Array
    """``[B, T]``."""
    last: jax.Array
    """``[B, T]``, bool: the episode ended with this step."""
    value: jax.Array
    """``[B, T + 1]``."""
    advantage: jax.Array
    """``[B, T]``."""
    scaled_advantage: jax.Array
    """``[B, T]``, in units of its own spread."""
    slow_q: jax.Array
    """``[B, T, A]``, action values."""
    action_advantage: jax.Array
    """``[B, T, A]``, action values less the value of the state."""
    scaled_action_advantage: jax.Array
    """``[B, T, A]``, in units of the advantages' spread."""


class Targets(NamedTuple):
    """The outputs that a meta-network wants an agent to have: logits."""

    policy: jax.Array
    """``[B, T, A]``."""
    y: jax.Array
    """``[B, T, m]``."""
    z: jax.Array
    """``[B, T, m]``, of the action that was taken."""


Memory = tuple[jax.Array, jax.Array]
"""Output and cell ``[k]`` of the LSTM that lives as long as the agent."""


def memory_at_birth(sizes: Sizes = Sizes()) -> Memory:
    """Zeros."""
    return jnp.zeros(sizes.memory_size), jnp.zeros(sizes.memory_size)


def apply(
    params: Params, memory: Memory, seen: Experience, good: jax.Array
) -> tuple[Targets, Memory]:
    """The targets of all steps, and the memory after the ``good [B]`` pieces.

    A piece that is not good (bool) gets targets that mean nothing.
    """
    x, channels = features(params, "lstm", seen)
    out = _read_backwards(params, x, seen.last)
    gate = _linear(params, "lstm/linear", memory[0])
    out = out * gate[None, None]
    summary = _linear(params, "lstm/linear_1", out)
    y, z = _linear(params, "lstm/linear_2", out), _linear(params, "lstm/linear_3", out)
    beside = jnp.broadcast_to(out[:, :, None], (*channels.shape[:-1], out.shape[-1]))
    w = _among_actions(params, "lstm/sequential_1/conv1_d", jnp.concatenate([beside, channels], -1))
    targets = Targets(_linear(params, "lstm/linear_4", w)[..., 0], y, z)
    return targets, _after(params, memory, seen, summary, targets.y, good)


def features(params: Params, at: str, seen: Experience) -> tuple[jax.Array, jax.Array]:
    """The inputs ``[B, T, 27]`` of one of the LSTMs, and the channels ``[B, T, A, 2]`` of actions, by networks of its own.

    ``at`` is where the names of these networks begin: ``"lstm"`` or `LIFE`.
    """
    of_y, of_z = (partial(_embedded, params, f"{at}/{name}") for name in ("mlp", "mlp_1"))
    z, slow_z = of_z(seen.z), of_z(seen.slow_z)
    chosen = jax.nn.one_hot(seen.action, seen.behaviour.shape[-1], dtype=seen.value.dtype)
    channels = jnp.stack(
        [
            seen.policy[:, :-1],
            seen.behaviour,
            seen.slow_policy[:, :-1],
            z[:, :-1],
            slow_z[:, :-1],
            signed_log(seen.slow_q),
            signed_log(seen.action_advantage),
            seen.scaled_action_advantage,
            chosen,
        ],
        axis=-1,
    )
    for name in ("conv1_d", "conv1_d_1"):
        channels = _among_actions(params, f"{at}/sequential/{name}", channels)

    def taken(x: jax.Array) -> jax.Array:
        return jnp.sum(chosen * x, axis=-1)

    def expected(x: jax.Array) -> jax.Array:
        return jnp.sum(seen.policy * x, axis=-1)

    inputs = [
        taken(seen.policy[:, :-1]),
        taken(seen.behaviour),
        signed_log(seen.reward),
        1.0 - seen.last.astype(seen.value.dtype),
        *_pair(signed_log(seen.value)),
        signed_log(seen.advantage),
        seen.scaled_advantage,
        taken(seen.slow_policy[:, :-1]),
        *_pair(of_y(seen.y)),
        *_pair(of_y(seen.slow_y)),
        taken(z[:, :-1]),
        *_pair(expected(z)),
        *_pair(jnp.max(z, axis=-1)),
        taken(slow_z[:, :-1]),
        *_pair(expected(slow_z)),
        *_pair(jnp.max(slow_z, axis=-1)),
    ]
    both = [jnp.mean(channels, axis=2), jnp.sum(chosen[..., None] * channels, axis=2)]
    return jnp.concatenate([jnp.stack(inputs, axis=-1), *both], axis=-1), channels


def signed_log(x: jax.Array) -> jax.Array:
    """``sign(x) log(1 + |x|)`` of ``x [...]``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def _pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x [B, T + 1]`` at each step and at the next, ``[B, T]`` each."""
    return x[:, :-1], x[:, 1:]


def _linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    kernel = params[f"{name}/w"]
    y = x @ kernel.reshape(kernel.shape[-2:])
    return y + jnp.broadcast_to(params[f"{name}/b"], y.shape)


def _embedded(params: Params, name: str, logits: jax.Array) -> jax.Array:
    """One number ``[...]`` for a distribution with ``logits [..., m]``."""
    hidden = jax.nn.relu(_linear(params, f"{name}/~/linear_0", jax.nn.softmax(logits)))
    return _linear(params, f"{name}/~/linear_1", hidden)[..., 0]


def _among_actions(params: Params, name: str, x: jax.Array) -> jax.Array:
    """A layer that each action goes through ``[..., A, F]``, with the mean of all actions at its side."""
    mean = jnp.broadcast_to(jnp.mean(x, axis=-2, keepdims=True), x.shape)
    return jax.nn.relu(_linear(params, name, jnp.concatenate([x, mean], axis=-1)))


def _read_backwards(params: Params, x: jax.Array, last: jax.Array) -> jax.Array:
    """The LSTM's outputs ``[B, T, H]`` from the end of each piece to its start; what is after an episode is forgotten."""
    kernel, bias = params["lstm/lstm/linear/w"], params["lstm/lstm/linear/b"]
    given = x @ kernel[: x.shape[-1]]
    given = given + jnp.broadcast_to(bias, given.shape)
    recurrent = kernel[x.shape[-1] :]

    def step(state: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        given, last = at
        h, cell = (jnp.where(last[:, None], 0.0, s) for s in state)
        state = lstm_cell(given + h @ recurrent, cell)
        return state, state[0]

    zero = jnp.zeros((x.shape[0], recurrent.shape[0]), x.dtype)
    by_time = jnp.swapaxes(given, 0, 1), jnp.swapaxes(last, 0, 1)
    _, out = jax.lax.scan(step, (zero, zero), by_time, reverse=True)
    return jnp.swapaxes(out, 0, 1)


def _after(
    params: Params,
    memory: Memory,
    seen: Experience,
    summary: jax.Array,
    y: jax.Array,
    good: jax.Array,
) -> Memory:
    """The memory after a step on the mean of all good pieces' steps."""
    x, _ = features(params, LIFE, seen)
    said = _embedded(params, f"{LIFE}/mlp", y)[..., None]
    inputs = jnp.concatenate([x, summary, said], axis=-1)
    embedded = _linear(params, f"{LIFE}/mlp_2/~/linear_0", inputs)
    mean = jnp.mean(embedded, axis=(0, 1), where=good[:, None, None])
    h, cell = memory
    return lstm_cell(_linear(params, f"{LIFE}/lstm/linear", jnp.concatenate([mean, h])), cell)
