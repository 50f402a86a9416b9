"""Recurrent networks: pure functions over nested dicts of arrays.

``gru(64)`` describes a network of 64 units; ``gru(64).init(key, num_inputs)`` draws its parameters
for inputs of a width. ``step`` serves acting and ``unroll`` serves learning; both compute the same
numbers. The networks are written for one stream. Under ``vmap`` with unmapped parameters their
products of a matrix and a vector become products of matrices with shared weights.

With ``precision="bfloat16"`` the factors of these products are rounded to 8 bits, the input of an
accelerator's fastest units. Sums, states, gates and parameters keep their precision. (Rounded
states would forget: a decay of 1 - 1/512 is 1 in 8 bits.)
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks, recurrences
from jaxmeta.networks import dense
from jaxmeta.types import Params


class Memory(NamedTuple):
    """A recurrent network. At a step whose ``reset`` (bool) is True the network first forgets everything before it."""

    init: Callable[[jax.Array, int], Params]
    """``(key, num_inputs) -> params`` for inputs of width D = ``num_inputs``."""
    initial: Callable[[], Any]
    """``() -> state`` at the start of a trial: a pytree of arrays whose shapes and dtypes every
    step keeps."""
    step: Callable[[Params, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    """``(params, state, x [D], reset []) -> (y [H], state)``."""
    unroll: Callable[[Params, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    """``(params, state, x [T, D], reset [T]) -> (y [T, H], state)``: the same for a whole
    stream."""
    size: int
    """H, the width of the output."""


def feed_forward(size: int = 64, *, precision: str = "full") -> Memory:
    """A network without memory: one tanh layer, as a control. The state is ``()``."""
    checks.at_least("size", size, 1)
    affine = _affine(precision)

    def step(params: Params, state: Any, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.tanh(affine(params, x)), state

    def unroll(params: Params, state: Any, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, Any]:
        return jax.vmap(step, (None, None, 0, 0), (0, None))(params, state, x, reset)

    def init(key: jax.Array, num_inputs: int) -> Params:
        return dense.init(key, num_inputs, size)

    return Memory(init, lambda: (), step, unroll, size)


LONG = 256
"""Steps of a stream from which on `gru` and `lstm` compute a step's values again in the reverse pass."""


def gru(
    size: int = 64,
    *,
    unroll_steps: int = 1,
    precision: str = "full",
    recompute: bool | None = None,
) -> Memory:
    """A gated recurrent unit (Cho et al. 2014, eqs. 5 to 8). The state is ``(h [H],)``.

    The reset gate is applied after the product with the recurrent weights, not before. So a step is
    one product of matrices.

    Args:
        size: H.
        unroll_steps: Steps of the scan compiled into one iteration: 4 hides some launches on a GPU.
        precision: Precision of products with weights, one of `PRECISIONS`.
        recompute: Whether the reverse pass computes each step's values again from its state, instead of keeping them. On a
            CPU a gradient takes 0.57 of the memory and as much time. None does so for streams of `LONG` steps and more.
    """

    def cell(state: tuple, given: jax.Array, recalled: jax.Array) -> tuple:
        (h,) = state
        forget, keep, candidate = jnp.split(given, 3)
        forget_h, keep_h, candidate_h = jnp.split(recalled, 3)
        keep = jax.nn.sigmoid(keep + keep_h)
        candidate = jnp.tanh(candidate + jax.nn.sigmoid(forget + forget_h) * candidate_h)
        return (keep * h + (1.0 - keep) * candidate,)

    return _gated(cell, size, jnp.zeros((3, 1)), 1, unroll_steps, precision, recompute)


def lstm(
    size: int = 64,
    *,
    unroll_steps: int = 1,
    precision: str = "full",
    recompute: bool | None = None,
) -> Memory:
    """Long short-term memory (Hochreiter & Schmidhuber 1997). The state is ``(h [H], c [H])``.

    It has the forget gate of Gers et al. 2000. The gate is open at first: its bias starts at 1
    (Jozefowicz et al. 2015). Arguments are those of `gru`.
    """

    def cell(state: tuple, given: jax.Array, recalled: jax.Array) -> tuple:
        _, c = state
        write, keep, read, candidate = jnp.split(given + recalled, 4)
        c = jax.nn.sigmoid(keep) * c + jax.nn.sigmoid(write) * jnp.tanh(candidate)
        return jax.nn.sigmoid(read) * jnp.tanh(c), c

    bias = jnp.array([[0.0], [1.0], [0.0], [0.0]])
    return _gated(cell, size, bias, 2, unroll_steps, precision, recompute)


def _gated(
    cell: Callable[[tuple, jax.Array, jax.Array], tuple],
    size: int,
    bias: jax.Array,
    num_states: int,
    unroll_steps: int,
    precision: str,
    recompute: bool | None,
) -> Memory:
    """A network with gates that read the input and the last output; the output is the first entry of the state.

    ``cell: (state, W x + b [G·H], U h [G·H]) -> state``; ``bias [G, 1]`` is the initial b of each
    gate.
    """
    checks.at_least("size", size, 1)
    checks.at_least("unroll_steps", unroll_steps, 1)
    checks.field("recompute", recompute, bool | None)
    num_gates = bias.shape[0]
    product, affine = _product(precision), _affine(precision)

    def init(key: jax.Array, num_inputs: int) -> Params:
        given_key, recalled_key = jax.random.split(key)
        given = dense.init(given_key, num_inputs, size, num_gates)
        given["bias"] = given["bias"] + jnp.broadcast_to(bias, (num_gates, size)).reshape(-1)
        return {"input": given, "recurrent": dense.glorot(recalled_key, size, size, num_gates)}

    def initial() -> tuple:
        return tuple(jnp.zeros(size) for _ in range(num_states))

    def advance(params: Params, state: tuple, given: jax.Array, reset: jax.Array) -> tuple:
        state = jax.tree.map(lambda s: jnp.where(reset, 0.0, s), state)
        return cell(state, given, product(state[0], params["recurrent"]))

    def step(params: Params, state: tuple, x: jax.Array, reset: jax.Array) -> tuple:
        state = advance(params, state, affine(params["input"], x), reset)
        return state[0], state

    def unroll(params: Params, state: tuple, x: jax.Array, reset: jax.Array) -> tuple:
        def body(state: tuple, at: tuple) -> tuple[tuple, jax.Array]:
            state = advance(params, state, *at)
            return state, state[0]

        again = x.shape[0] >= LONG if recompute is None else recompute
        body = jax.checkpoint(body, prevent_cse=False) if again else body
        # The inputs' part of all T steps is one product of matrices; the scan does the rest.
        given = jax.vmap(functools.partial(affine, params["input"]))(x)
        state, y = jax.lax.scan(body, state, (given, reset), unroll=unroll_steps)
        return y, state

    return Memory(init, initial, step, unroll, size)


def linear_recurrence(
    size: int = 64,
    *,
    num_layers: int = 1,
    parallel: bool | None = None,
    precision: str = "full",
) -> Memory:
    r"""A gated linear recurrence that takes O(log T) parallel steps. The state is a tuple of ``h [H]``.

    Each layer is a minimal GRU (Feng et al. 2024, "Were RNNs all we needed?", sec. 3.1), whose
    gates see the input alone, read by a tanh layer that sees the input too:

    $$h_t = a_t h_{t-1} + (1 - a_t) c_t, \quad a_t = σ(W_a x_t), \quad c_t = W_c x_t,$$

    $$y_t = \tanh(h_t + W_s x_t)$$

    A linear function of y is a network with one hidden layer over the memory. Units of one layer do
    not read each other: they meet in the layer above. That saves a product with an H × H matrix at
    every step.

    Initial time scales are spread from 2 steps to `LONGEST_MEMORY` (after Tallec & Ollivier 2018,
    "Can recurrent neural networks warp time?").

    Args:
        size: H.
        num_layers: Number of layers; each reads the output of the layer below.
        parallel: Whether `unroll` uses an associative scan over time (Blelloch 1990) instead of
            going step by step. None chooses by the default backend: step by step on a CPU, where
            the scan over steps was about 2.5 × faster, and in parallel elsewhere.
        precision: Precision of products with weights, one of `PRECISIONS`.
    """
    checks.at_least("size", size, 1)
    checks.at_least("num_layers", num_layers, 1)
    checks.field("parallel", parallel, bool | None)
    names = [f"layer_{i}" for i in range(num_layers)]
    affine = _affine(precision)

    def init(key: jax.Array, num_inputs: int) -> Params:
        keys = jax.random.split(key, num_layers)
        inputs = [num_inputs] + [size] * (num_layers - 1)
        return {n: _init_linear_layer(keys[i], inputs[i], size) for i, n in enumerate(names)}

    def initial() -> tuple:
        return tuple(jnp.zeros(size) for _ in names)

    gates = functools.partial(_linear_gates, affine)

    def step(params: Params, state: tuple, x: jax.Array, reset: jax.Array) -> tuple:
        after = []
        for name, h in zip(names, state, strict=True):
            decay, new, skip = gates(params[name], x, reset)
            h = decay * h + new
            after.append(h)
            x = jnp.tanh(h + skip)
        return x, tuple(after)

    def unroll_parallel(params: Params, state: tuple, x: jax.Array, reset: jax.Array) -> tuple:
        after = []
        for name, h in zip(names, state, strict=True):
            decay, new, skip = jax.vmap(gates, (None, 0, 0))(params[name], x, reset)
            h = recurrences.linear_recurrence(new.at[0].add(decay[0] * h), decay, parallel=True)
            after.append(h[-1])
            x = jnp.tanh(h + skip)
        return x, tuple(after)

    def unroll(params: Params, state: tuple, x: jax.Array, reset: jax.Array) -> tuple:
        in_parallel = jax.default_backend() != "cpu" if parallel is None else parallel
        if in_parallel:
            return unroll_parallel(params, state, x, reset)
        return _unroll_sequential(step, params, state, x, reset)

    return Memory(init, initial, step, unroll, size)


def _init_linear_layer(key: jax.Array, num_inputs: int, size: int) -> Params:
    """Parameters of one layer, with time scales from 2 steps to `LONGEST_MEMORY`."""
    params = dense.init(key, num_inputs, size, 3)
    scale = jnp.exp(jnp.linspace(math.log(2.0), math.log(LONGEST_MEMORY), size))
    params["bias"] = params["bias"].at[:size].set(jnp.log(scale - 1.0))  # a = 1 - 1/scale
    return params


def _linear_gates(
    affine: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    x: jax.Array,
    reset: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(a, (1 - a) c, W_s x)`` of an input ``x``; a is 0 at a reset."""
    keep, candidate, skip = jnp.split(affine(params, x), 3)
    keep = jax.nn.sigmoid(keep)
    return jnp.where(reset, 0.0, keep), (1.0 - keep) * candidate, skip


def _unroll_sequential(
    step: Callable[..., tuple], params: Params, state: tuple, x: jax.Array, reset: jax.Array
) -> tuple:
    """``(y [T, H], state)`` by a scan over steps that are computed again in the reverse pass."""

    # A step costs less to compute again than its intermediate values cost to store and load. For
    # that the projections must stay inside the scan.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(state: tuple, at: tuple) -> tuple:
        y, state = step(params, state, *at)
        return state, y

    state, y = jax.lax.scan(body, state, (x, reset))
    return y, state


LONGEST_MEMORY = 512.0
"""Time scale in steps of the slowest unit of a new `linear_recurrence`; its fastest has 2."""


class TransformerState(NamedTuple):
    """Keys and values of the last ``context`` steps; time t is in slot ``t % context``."""

    keys: jax.Array
    """``[layers, context, heads, head_size]``."""
    values: jax.Array
    """``[layers, context, heads, head_size]``."""
    time: jax.Array
    """``[]``, int32: steps so far."""
    start: jax.Array
    """``[]``, int32: the time of the last reset."""


def transformer(
    size: int = 64,
    *,
    context: int,
    num_layers: int = 2,
    num_heads: int = 4,
    precision: str = "full",
) -> Memory:
    """A causal transformer over the last ``context`` steps since the last reset, the present step included.

    Vaswani et al. 2017, with normalisation before each sub-layer (Xiong et al. 2020) and rotary
    positions (Su et al. 2021). Only distances between steps matter; positions count from the reset,
    which keeps angles small. Each layer attends to ``context`` steps, so several layers reach back
    further. The state is a `TransformerState`.

    Args:
        size: H, a multiple of ``2 * num_heads``.
        context: Steps that one layer attends to. The steps of a trial let it attend to the whole
            trial.
        num_layers: Pairs of attention and feed-forward sub-layers.
        num_heads: Attention heads.
        precision: Precision of products with weights, one of `PRECISIONS`.

    Raises:
        ValueError: a size is out of range, or ``size`` is no multiple of ``2 * num_heads``.
    """
    checks.at_least("size", size, 1)
    checks.choice("precision", precision, PRECISIONS)
    checks.at_least("num_layers", num_layers, 1)
    checks.at_least("num_heads", num_heads, 1)
    checks.at_least("context", context, 1)
    if size % (2 * num_heads):
        raise ValueError(
            f"size={size} must be a multiple of {2 * num_heads}: num_heads={num_heads} heads of an "
            "even size"
        )
    layers = _Layers(num_layers, num_heads, size // num_heads, context, _affine(precision))

    def init(key: jax.Array, num_inputs: int) -> Params:
        input_key, *keys = jax.random.split(key, num_layers + 1)
        return {
            "input": dense.init(input_key, num_inputs, size),
            "norm": _init_norm(size),
            **{name: _init_block(k, size) for name, k in zip(layers.names, keys, strict=True)},
        }

    def initial() -> TransformerState:
        cache = jnp.zeros((num_layers, context, num_heads, size // num_heads))
        return TransformerState(cache, cache, jnp.array(0, jnp.int32), jnp.array(0, jnp.int32))

    return Memory(init, initial, layers.step, layers.unroll, size)


def _init_norm(size: int) -> Params:
    """Parameters of a layer normalisation."""
    return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}


def _init_block(key: jax.Array, size: int) -> Params:
    """Parameters of a pair of attention and feed-forward sub-layers."""
    keys = jax.random.split(key, 4)
    return {
        "norm_1": _init_norm(size),
        "attend": dense.init(keys[0], size, size, 3),
        "join": dense.init(keys[1], size, size),
        "norm_2": _init_norm(size),
        "up": dense.init(keys[2], size, 4 * size),
        "down": dense.init(keys[3], 4 * size, size),
    }


class _Layers(NamedTuple):
    """The layers of a `transformer`: their sizes, and the functions that apply them."""

    num_layers: int
    num_heads: int
    head_size: int
    context: int
    affine: Callable[[Params, jax.Array], jax.Array]

    @property
    def names(self) -> list[str]:
        """Names of the layers' parameters."""
        return [f"layer_{i}" for i in range(self.num_layers)]

    def project(self, layer: Params, x: jax.Array, position: jax.Array) -> tuple:
        """Query, key and value ``[heads, head_size]`` of ``x [H]``."""
        projected = self.affine(layer["attend"], _layer_norm(layer["norm_1"], x))
        q, k, v = projected.reshape(3, self.num_heads, self.head_size)
        return _rotate(q, position), _rotate(k, position), v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
        """``(q [heads, head_size], k and v [S, heads, head_size], seen [S]) -> [H]``."""
        scores = jnp.einsum("hd,shd->hs", q, k) / math.sqrt(self.head_size)
        scores = jnp.where(jnp.broadcast_to(seen, scores.shape), scores, -jnp.inf)
        return jnp.einsum("hs,shd->hd", jax.nn.softmax(scores), v).reshape(-1)

    def complete(self, layer: Params, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output ``[H]`` from its input ``x [H]`` and the heads' result ``[H]``."""
        x = x + self.affine(layer["join"], attended)
        hidden = jax.nn.gelu(self.affine(layer["up"], _layer_norm(layer["norm_2"], x)))
        return x + self.affine(layer["down"], hidden)

    def step(
        self, params: Params, state: TransformerState, x: jax.Array, reset: jax.Array
    ) -> tuple[jax.Array, TransformerState]:
        """``(y [H], state)`` after one input."""
        keys, values, time, start = state
        start = jnp.where(reset, time, start)
        slot = time % self.context
        # The age of a slot is its distance to this slot around the ring.
        ages = (slot - jnp.arange(self.context, dtype=time.dtype)) % self.context
        seen = ages <= time - start
        x = self.affine(params["input"], x)
        for i, name in enumerate(self.names):
            q, k, v = self.project(params[name], x, time - start)
            keys, values = keys.at[i, slot].set(k), values.at[i, slot].set(v)
            x = self.complete(params[name], x, self.attend(q, keys[i], values[i], seen))
        return _layer_norm(params["norm"], x), TransformerState(keys, values, time + 1, start)

    def unroll(
        self, params: Params, state: TransformerState, x: jax.Array, reset: jax.Array
    ) -> tuple[jax.Array, TransformerState]:
        """``(y [T, H], state)`` after a stream of inputs: the same as T steps."""
        num_steps = x.shape[0]
        steps = jnp.arange(num_steps, dtype=state.time.dtype)
        slots = jnp.arange(self.context, dtype=state.time.dtype)
        times = state.time + steps
        start = jax.lax.cummax(jnp.where(reset, times, state.start))
        # ``order`` lists the ring's slots by time; ``ring`` puts the last keys back into the ring.
        order = (state.time + slots) % self.context
        ring = num_steps + (slots - state.time - num_steps) % self.context
        key_times = jnp.concatenate([state.time - self.context + slots, times])

        def is_seen(time: jax.Array, start: jax.Array) -> jax.Array:
            oldest = jnp.maximum(start, time - self.context + 1)
            return (key_times >= oldest) & (key_times <= time)

        seen = jax.vmap(is_seen)(times, start)
        x = jax.vmap(functools.partial(self.affine, params["input"]))(x)
        keys, values = [], []
        for i, name in enumerate(self.names):
            q, k, v = jax.vmap(self.project, (None, 0, 0))(params[name], x, times - start)
            k = jnp.concatenate([state.keys[i, order], k])
            v = jnp.concatenate([state.values[i, order], v])
            attended = jax.vmap(self.attend, (0, None, None, 0))(q, k, v, seen)
            x = jax.vmap(self.complete, (None, 0, 0))(params[name], x, attended)
            keys.append(k[ring])
            values.append(v[ring])
        y = jax.vmap(functools.partial(_layer_norm, params["norm"]))(x)
        end = TransformerState(
            jnp.stack(keys), jnp.stack(values), state.time + num_steps, start[-1]
        )
        return y, end


def _rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """``x [heads, head_size]`` with rotary positions: products of two of them depend on their distance alone."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** -(jnp.arange(half) / half)
    cos = jnp.broadcast_to(jnp.cos(angle), (x.shape[0], half))
    sin = jnp.broadcast_to(jnp.sin(angle), (x.shape[0], half))
    a, b = x[:, :half], x[:, half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def _layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Layer normalisation ``[H]`` of ``x [H]``: Ba et al. 2016."""
    return jax.nn.standardize(x, epsilon=1e-5) * params["scale"] + params["bias"]


def _product(precision: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function ``(x, w) -> x @ w`` in a precision."""
    checks.choice("precision", precision, PRECISIONS)
    if precision == "full":
        return jnp.matmul

    def rounded(x: jax.Array, w: jax.Array) -> jax.Array:
        # Rounding inside a scan's body lets gradients add up over steps in full precision.
        factors = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
        return jnp.matmul(*factors, preferred_element_type=x.dtype)

    return rounded


def _affine(precision: str) -> Callable[[Params, jax.Array], jax.Array]:
    """The function ``(params, x) -> x W + b`` in a precision."""
    return functools.partial(dense.apply, product=_product(precision))


PRECISIONS = ("full", "bfloat16")
MEMORIES = ("gru", "lstm", "linear", "transformer", "none")


def check(memory: str, memory_size: int, precision: str, choices: Sequence[str] = MEMORIES) -> None:
    """Raises ValueError unless ``memory`` is one of ``choices`` and fits the size and the precision."""
    checks.choice("memory", memory, choices)
    checks.choice("precision", precision, PRECISIONS)
    checks.at_least("memory_size", memory_size, 1)
    if memory == "transformer" and memory_size % 8:
        raise ValueError(
            f"memory_size={memory_size} must be a multiple of 8 with memory='transformer'"
        )


def make(kind: str, *, size: int, context: int, precision: str = "full") -> Memory:
    """The network that a configuration names, one of `MEMORIES`; only ``"transformer"`` uses ``context``."""
    checks.choice("memory", kind, MEMORIES)
    checks.at_least("context", context, 1)
    if kind == "transformer":
        return transformer(size, context=context, precision=precision)
    makers: dict[str, Callable[..., Memory]] = {
        "gru": gru,
        "lstm": lstm,
        "linear": linear_recurrence,
        "none": feed_forward,
    }
    return makers[kind](size, precision=precision)
