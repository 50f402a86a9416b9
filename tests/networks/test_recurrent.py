import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.networks import recurrent
from tests.probes import thorough

INPUTS, SIZE, STEPS, CONTEXT = 3, 8, 12, 5  # more steps than the transformer can look back
SIZES = {"size": SIZE}

MAKE = {
    kind: functools.partial(recurrent.make, kind, context=CONTEXT) for kind in recurrent.MEMORIES
}
MAKE["linear parallel"] = functools.partial(recurrent.linear_recurrence, parallel=True)
MAKE["linear stack"] = functools.partial(recurrent.linear_recurrence, num_layers=2)
MAKE["linear stack parallel"] = functools.partial(
    recurrent.linear_recurrence, num_layers=2, parallel=True
)
MAKE["transformer, one head"] = functools.partial(
    recurrent.transformer, num_heads=1, num_layers=1, context=1
)
REMEMBERS = [kind for kind in MAKE if kind not in ("none", "transformer, one head")]


class Case(NamedTuple):
    memory: recurrent.Memory
    params: dict
    unroll: object  # jitted
    stepwise: object  # jitted; the same by `Memory.step`


def stepwise(memory, params, state, x, reset):
    def body(state, at):
        y, state = memory.step(params, state, *at)
        return state, y

    state, y = jax.lax.scan(body, state, (x, reset))
    return y, state


@functools.cache
def case(kind):
    memory = MAKE[kind](**SIZES)
    return Case(
        memory,
        memory.init(jax.random.key(0), INPUTS),
        jax.jit(memory.unroll),
        jax.jit(functools.partial(stepwise, memory)),
    )


def stream(seed, num_resets=3):
    rng = np.random.default_rng(seed)
    reset = np.zeros(STEPS, bool)
    reset[rng.choice(STEPS, num_resets, replace=False)] = True
    return jnp.asarray(rng.normal(size=(STEPS, INPUTS)), float), jnp.asarray(reset)


def an_older_state(c, seed=9):
    """After a stream whose last reset lies some steps back."""
    x, _ = stream(seed)
    return c.stepwise(c.params, c.memory.initial(), x, jnp.arange(STEPS) == 8)[1]


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


every_kind = pytest.mark.parametrize("kind", MAKE)
with_memory = pytest.mark.parametrize("kind", REMEMBERS)


@every_kind
def test_unroll_is_step_by_step(kind):
    c = case(kind)
    for seed, state in enumerate([c.memory.initial(), *[an_older_state(c)] * 4]):
        x, reset = stream(seed, num_resets=(0, 0, 1, 3, 5)[seed])
        close(c.unroll(c.params, state, x, reset), c.stepwise(c.params, state, x, reset))


@every_kind
def test_two_halves_are_the_whole(kind):
    c = case(kind)
    half = STEPS // 2
    for seed in range(3):
        x, reset = stream(seed, num_resets=seed)
        state = an_older_state(c)
        whole, end = c.unroll(c.params, state, x, reset)
        y1, state = c.unroll(c.params, state, x[:half], reset[:half])
        y2, state = c.unroll(c.params, state, x[half:], reset[half:])
        close((jnp.concatenate([y1, y2]), state), (whole, end))


@every_kind
def test_a_reset_is_a_fresh_start(kind):
    """Exactly: outputs do not depend on what came before, and are those of the initial state.

    A transformer sums over the same steps in the order of other slots, so up to rounding.
    """
    c = case(kind)
    x, _ = stream(0)
    at_start = jnp.arange(STEPS) == 0
    for run in (c.unroll, c.stepwise):
        fresh, _ = run(c.params, c.memory.initial(), x, ~at_start & False)
        after, _ = run(c.params, an_older_state(c), x, at_start)
        np.testing.assert_allclose(
            after, fresh, rtol=0, atol=2e-6 if kind.startswith("transformer") else 0
        )
        other, _ = run(c.params, an_older_state(c, seed=10), x, at_start)
        np.testing.assert_array_equal(other, after)


@with_memory
def test_the_given_state_counts(kind):
    c = case(kind)
    x, _ = stream(0)
    nowhere = jnp.zeros(STEPS, bool)
    fresh, _ = c.unroll(c.params, c.memory.initial(), x, nowhere)
    older, _ = c.unroll(c.params, an_older_state(c), x, nowhere)
    assert jnp.abs(fresh - older)[0].max() > 1e-3


@every_kind
def test_outputs_know_the_past_and_nothing_else(kind):
    """``y_t`` depends on ``x_s`` where s <= t, there was no reset in (s, t], and memory reaches."""
    c = case(kind)
    x, _ = stream(0)
    reset = jnp.arange(STEPS) == 8
    y, _ = c.unroll(c.params, c.memory.initial(), x, reset)
    for s in (0, 5, 9):
        moved, _ = c.unroll(c.params, c.memory.initial(), x.at[s].add(1.0), reset)
        difference = jnp.abs(moved - y).max(axis=1)
        end = 8 if s < 8 else STEPS
        if kind not in REMEMBERS:
            end = s + 1
        elif kind == "transformer":
            end = min(end, s + 2 * (CONTEXT - 1) + 1)  # a window in each of two layers
        depends = (jnp.arange(STEPS) >= s) & (jnp.arange(STEPS) < end)
        assert (difference[depends] > 1e-6).all(), (s, difference)
        np.testing.assert_array_equal(difference[~depends], 0.0)


def test_attention_looks_back_context_steps():
    """With one layer, exactly; on both paths, around the ring."""
    memory = recurrent.transformer(num_layers=1, context=CONTEXT, **SIZES)
    params = memory.init(jax.random.key(0), INPUTS)
    x, _ = stream(0)
    nowhere = jnp.zeros(STEPS, bool)
    for run in (jax.jit(memory.unroll), jax.jit(functools.partial(stepwise, memory))):
        y, _ = run(params, memory.initial(), x, nowhere)
        moved, _ = run(params, memory.initial(), x.at[2].add(1.0), nowhere)
        difference = jnp.abs(moved - y).max(axis=1)
        assert (difference[2 : 2 + CONTEXT] > 1e-6).all()
        np.testing.assert_array_equal(difference[2 + CONTEXT :], 0.0)


def test_attention_knows_the_order():
    """The same steps in another order are told apart, which without positions they would not be."""
    memory = recurrent.transformer(num_layers=1, context=CONTEXT, **SIZES)
    params = memory.init(jax.random.key(0), INPUTS)
    x = stream(0)[0][:4]
    nowhere = jnp.zeros(4, bool)
    run = jax.jit(memory.unroll)
    y, _ = run(params, memory.initial(), x, nowhere)
    swapped, _ = run(params, memory.initial(), x[jnp.array([1, 0, 2, 3])], nowhere)
    assert jnp.abs(y - swapped)[-1].max() > 1e-4


@every_kind
def test_gradients_are_those_of_steps(kind):
    """Also through the state from one half to the next."""
    c = case(kind)
    x, reset = stream(1, num_resets=2)
    half = STEPS // 2
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(half, SIZE)), float)

    def gradient(run):
        def loss(params, x):
            y1, state = run(params, c.memory.initial(), x[:half], reset[:half])
            y2, _ = run(params, state, x[half:], reset[half:])
            return jnp.sum(weight * y1) + jnp.sum(weight * y2)

        return jax.jit(jax.grad(loss, (0, 1)))(c.params, x)

    together = gradient(c.memory.unroll)
    close(together, gradient(functools.partial(stepwise, c.memory)), atol=1e-4)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(together[1]))


@every_kind
def test_mapped_over_streams_is_one_by_one(kind):
    c = case(kind)
    xs, resets = (jnp.stack(z) for z in zip(*[stream(s) for s in range(3)], strict=True))
    states = jax.tree.map(lambda *z: jnp.stack(z), *[an_older_state(c, s) for s in (5, 6, 7)])
    together = jax.jit(jax.vmap(c.memory.unroll, (None, 0, 0, 0)))(c.params, states, xs, resets)
    for i in range(3):
        state, alone = jax.tree.map(lambda z, i=i: z[i], (states, together))
        close(c.unroll(c.params, state, xs[i], resets[i]), alone)


def avals(tree):
    return jax.tree.map(lambda z: (z.shape, z.dtype, getattr(z, "weak_type", False)), tree)


@every_kind
@pytest.mark.parametrize("float_type", [jnp.float32, jnp.float64])
def test_states_stay_what_they_are(kind, float_type):
    """A state is fit to be carried by a scan, with 64-bit numbers too."""
    with jax.enable_x64(float_type == jnp.float64):
        memory = MAKE[kind](**SIZES)
        params = jax.eval_shape(lambda key: memory.init(key, INPUTS), jax.random.key(0))
        state = jax.eval_shape(memory.initial)
        assert all(z.dtype == float_type for z in jax.tree.leaves(params))
        assert not any(z.weak_type for z in jax.tree.leaves((params, state)))
        x, reset = jax.ShapeDtypeStruct((STEPS, INPUTS), float_type), jnp.zeros(STEPS, bool)
        y, after = jax.eval_shape(memory.unroll, params, state, x, reset)
        assert avals(after) == avals(state)
        assert avals(y) == ((STEPS, SIZE), float_type, False)
        y, after = jax.eval_shape(memory.step, params, state, jnp.zeros(INPUTS), jnp.array(True))
        assert avals(after) == avals(state)
        assert avals(y) == ((SIZE,), float_type, False)


def test_a_gru_and_an_lstm_are_their_formulas():
    x, h, c = (np.random.default_rng(i).normal(size=n) for i, n in enumerate((INPUTS, SIZE, SIZE)))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    def gates(params, num_gates):
        given, own = params["input"], np.asarray(params["recurrent"])
        w = np.split(x @ np.asarray(given["kernel"]) + np.asarray(given["bias"]), num_gates)
        return w, np.split(h @ own, num_gates)

    memory = recurrent.gru(**SIZES)
    params = memory.init(jax.random.key(0), INPUTS)
    (r, z, n), (r_h, z_h, n_h) = gates(params, 3)
    r, z = sigmoid(r + r_h), sigmoid(z + z_h)
    expected = z * h + (1 - z) * np.tanh(n + r * n_h)
    y, _ = memory.step(params, (jnp.array(h, float),), jnp.array(x, float), jnp.array(False))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)

    memory = recurrent.lstm(**SIZES)
    params = memory.init(jax.random.key(0), INPUTS)
    np.testing.assert_array_equal(params["input"]["bias"], [0.0] * 8 + [1.0] * 8 + [0.0] * 16)
    i, f, o, g = (a + b for a, b in zip(*gates(params, 4), strict=True))
    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    state = (jnp.array(h, float), jnp.array(c, float))
    y, state = memory.step(params, state, jnp.array(x, float), jnp.array(False))
    np.testing.assert_allclose(state[1], c_next, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(y, sigmoid(o) * np.tanh(c_next), rtol=1e-4, atol=1e-6)


def test_a_new_linear_recurrence_has_memories_of_every_length():
    memory = recurrent.linear_recurrence(size=10)
    params = memory.init(jax.random.key(0), 1)
    _, (h,) = memory.step(params, (jnp.ones(10),), jnp.zeros(1), jnp.array(False))
    np.testing.assert_allclose(1 / (1 - h), 2 * 256 ** (jnp.arange(10) / 9), rtol=1e-3)


@pytest.mark.parametrize("kind", recurrent.MEMORIES)
def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(kind):
    full = case(kind)
    memory = recurrent.make(kind, **SIZES, context=CONTEXT, precision="bfloat16")
    chex.assert_trees_all_equal(memory.init(jax.random.key(0), INPUTS), full.params)
    x, reset = stream(0)
    before = full.memory.initial()
    unrolled = jax.jit(memory.unroll)(full.params, before, x, reset)
    one_by_one = jax.jit(functools.partial(stepwise, memory))(full.params, before, x, reset)
    exact = full.unroll(full.params, before, x, reset)
    chex.assert_trees_all_equal_shapes_and_dtypes(unrolled, exact)
    assert 1e-5 < jnp.abs(unrolled[0] - exact[0]).max() < 0.05
    np.testing.assert_allclose(unrolled[0], one_by_one[0], atol=0.02)


@pytest.mark.parametrize("kind", thorough(["gru", "lstm", "linear"], ("linear",)))
def test_gradients_through_bfloat16_add_up_in_full(kind):
    """Two thousand steps that all pull the same way: a sum in bfloat16 stops growing after 256."""

    def gradient(precision):
        memory = recurrent.make(kind, **SIZES, context=CONTEXT, precision=precision)
        x, never = jnp.ones((2000, INPUTS)), jnp.zeros(2000, bool)
        params = memory.init(jax.random.key(0), INPUTS)
        return jax.jit(
            jax.grad(lambda params: memory.unroll(params, memory.initial(), x, never)[0].mean())
        )(params)

    for rounded, exact in zip(
        *map(jax.tree.leaves, map(gradient, ("bfloat16", "full"))), strict=True
    ):
        assert jnp.linalg.norm(rounded - exact) < 0.03 * jnp.linalg.norm(exact)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="precision='float16' is unknown"):
        recurrent.make("gru", **SIZES, context=1, precision="float16")
    with pytest.raises(ValueError, match="memory='grou' is unknown: did you mean 'gru'"):
        recurrent.make("grou", **SIZES, context=1)
    with pytest.raises(ValueError, match="size=6 must be a multiple of 8: num_heads=4"):
        recurrent.transformer(size=6, context=4)
    with pytest.raises(ValueError, match="context=0 must be at least 1"):
        recurrent.make("transformer", **SIZES, context=0)
    with pytest.raises(ValueError, match="num_layers=0"):
        recurrent.linear_recurrence(**SIZES, num_layers=0)
    with pytest.raises(ValueError, match="unroll_steps=0"):
        recurrent.gru(**SIZES, unroll_steps=0)
    for kind in recurrent.MEMORIES:
        with pytest.raises(ValueError, match="num_inputs=0"):
            recurrent.make(kind, size=8, context=4).init(jax.random.key(0), 0)
        with pytest.raises(TypeError, match="size=8.0 must be an integer"):
            recurrent.make(kind, size=8.0, context=4)


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_a_linear_recurrence_learns_to_remember():
    """The sign of the first of 100 inputs, which is marked, through noise."""
    memory = recurrent.linear_recurrence(size=32)
    mark = jnp.zeros((64, 100, 1)).at[:, 0].set(1.0)
    optimizer = optax.adam(3e-3)

    def loss(params, x):
        def last(x):
            nowhere = jnp.zeros(100, bool)
            return memory.unroll(params["memory"], memory.initial(), x, nowhere)[0][-1]

        logit = jax.vmap(last)(x) @ params["head"]
        right = (logit > 0) == (x[:, 0, 0] > 0)
        return optax.sigmoid_binary_cross_entropy(logit, x[:, 0, 0] > 0).mean(), right.mean()

    def update(carry, key):
        params, state = carry
        x = jnp.concatenate([jax.random.normal(key, (64, 100, 1)), mark], axis=2)
        gradient, right = jax.grad(loss, has_aux=True)(params, x)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, change), state), right

    params = {"memory": memory.init(jax.random.key(0), 2), "head": jnp.zeros(32)}
    keys = jax.random.split(jax.random.key(1), 700)
    _, right = jax.jit(lambda c: jax.lax.scan(update, c, keys))((params, optimizer.init(params)))
    assert right[-50:].mean() > 0.95


@pytest.mark.parametrize("kind", [recurrent.gru, recurrent.lstm])
def test_values_that_are_computed_again_change_no_gradient_and_take_less_memory(kind, monkeypatch):
    monkeypatch.setattr(recurrent, "LONG", 40)
    x, reset = jnp.ones((16, 40, INPUTS)), jnp.zeros((16, 40), bool)

    def learning(recompute, x):
        memory = kind(SIZE, recompute=recompute)
        params = memory.init(jax.random.key(0), INPUTS)

        def loss(params):
            unroll = jax.vmap(memory.unroll, (None, None, 0, 0))
            return jnp.sum(unroll(params, memory.initial(), x, reset[:, : x.shape[1]])[0] ** 2)

        program = jax.jit(jax.grad(loss)).lower(params).compile()
        return program(params), program.memory_analysis().temp_size_in_bytes

    (kept, whole), (again, part) = (learning(x_, x) for x_ in (False, True))
    close(again, kept)
    assert part < 0.75 * whole
    assert learning(None, x)[1] == part  # as long as LONG
    assert learning(None, x[:, :-1])[1] > part
