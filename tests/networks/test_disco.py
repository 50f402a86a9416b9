import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.networks import disco
from jaxmeta.networks.disco import Experience, Sizes
from tests.networks import disco_by_hand as by_hand

SMALL = Sizes(num_predictions=5, hidden_size=4, memory_size=3)
NOT_DISTRIBUTIONS = ("action", "reward", "last")


def experience(sizes, batch=2, length=4, num_actions=3, seed=0):
    """Arrays by the names of `Experience`: random, and with an episode's end in the second piece."""
    rng = np.random.default_rng(seed)
    m = sizes.num_predictions

    def policies(steps):
        x = np.exp(rng.normal(size=(batch, steps, num_actions)))
        return x / x.sum(-1, keepdims=True)

    last = np.zeros((batch, length), bool)
    last[1, 1] = True
    return {
        "policy": policies(length + 1),
        "behaviour": policies(length),
        "slow_policy": policies(length + 1),
        "y": 2 * rng.normal(size=(batch, length + 1, m)),
        "slow_y": 2 * rng.normal(size=(batch, length + 1, m)),
        "z": 2 * rng.normal(size=(batch, length + 1, num_actions, m)),
        "slow_z": 2 * rng.normal(size=(batch, length + 1, num_actions, m)),
        "action": rng.integers(num_actions, size=(batch, length)),
        "reward": 3 * rng.normal(size=(batch, length)),
        "last": last,
        "value": 3 * rng.normal(size=(batch, length + 1)),
        "advantage": rng.normal(size=(batch, length)),
        "scaled_advantage": rng.normal(size=(batch, length)),
        "slow_q": 3 * rng.normal(size=(batch, length, num_actions)),
        "action_advantage": rng.normal(size=(batch, length, num_actions)),
        "scaled_action_advantage": rng.normal(size=(batch, length, num_actions)),
    }


def as_experience(x):
    return Experience(**{name: jnp.asarray(value) for name, value in x.items()})


def everyone(x):
    return jnp.ones(x["reward"].shape[0], bool)


@functools.cache
def applied():
    return jax.jit(disco.apply)


def test_the_arrays_are_those_of_the_published_weights():
    """42 arrays and 754 778 numbers."""
    shapes = disco.shapes()
    assert len(shapes) == 42
    assert sum(int(np.prod(x)) for x in shapes.values()) == 754_778
    assert shapes["lstm/lstm/linear/w"] == (283, 1024)
    assert shapes["lstm/sequential_1/conv1_d/w"] == (1, 516, 16)
    assert shapes["lstm/~/meta_lstm/~unroll/lstm/linear/w"] == (144, 512)
    assert shapes["lstm/~/meta_lstm/~unroll/mlp_2/~/linear_0/b"] == (16,)


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_the_meta_network_is_that_of_the_paper(sizes):
    """Every output, in float32, against a version by hand in float64; the memory is not that of a birth."""
    w = by_hand.weights(disco.shapes(sizes))
    x = experience(sizes)
    rng = np.random.default_rng(1)
    memory = tuple(np.tanh(rng.normal(size=(2, sizes.memory_size))))
    expected, expected_memory = by_hand.meta_network(w, memory, x)
    as_float = {name: jnp.asarray(value, float) for name, value in w.items()}
    arrays = as_experience(x)
    targets, after = applied()(as_float, tuple(map(jnp.asarray, memory)), arrays, everyone(x))
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(targets, name), value, rtol=1e-5, atol=1e-5)
    for value, found in zip(expected_memory, after, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at", ["lstm", disco.LIFE])
def test_the_27_inputs_are_in_the_order_of_the_paper(at):
    w, x = by_hand.weights(disco.shapes(SMALL)), experience(SMALL)
    as_float = {name: jnp.asarray(value, float) for name, value in w.items()}
    found, channels = jax.jit(functools.partial(disco.features, at=at))(
        as_float, seen=as_experience(x)
    )
    assert found.shape == (2, 4, 27)
    for b in range(2):
        for t in range(4):
            expected, rows = by_hand.inputs(w, at, x, b, t)
            np.testing.assert_allclose(found[b, t], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(channels[b, t], rows, rtol=1e-5, atol=1e-5)


def test_every_array_has_a_say():
    """The targets and the memory depend on all 42, the meta-LSTM's through the next update."""
    made = by_hand.weights(disco.shapes(SMALL)).items()
    # Of two ReLUs with negative biases none may be active.
    w = {k: jnp.asarray(np.abs(x) if k[-1] == "b" else x, float) for k, x in made}
    seen = as_experience(experience(SMALL))

    def said(w):
        memory = disco.memory_at_birth(SMALL)
        for _ in range(2):
            targets, memory = disco.apply(w, memory, seen, jnp.ones(2, bool))
        weights = jnp.cos(jnp.arange(seen.y[:, :-1].size)).reshape(targets.y.shape)
        return jnp.sum(targets.policy[..., 0]) + jnp.sum(weights * (targets.y + targets.z))

    for name, x in jax.jit(jax.grad(said))(w).items():
        assert np.any(np.asarray(x) != 0), name


def test_what_is_after_an_episode_s_end_is_not_read():
    """But by the next value, which the end makes worthless: it is of the last step and not of the LSTM."""
    w = {k: jnp.asarray(x, float) for k, x in by_hand.weights(disco.shapes(SMALL)).items()}
    x = experience(SMALL)
    changed = {name: np.array(value) for name, value in x.items()}
    changed["reward"][1, 2:] += 5.0
    changed["scaled_advantage"][1, 2:] -= 5.0
    memory = disco.memory_at_birth(SMALL)
    before, after = (applied()(w, memory, as_experience(y), everyone(y))[0].y for y in (x, changed))
    np.testing.assert_array_equal(before[1, :2], after[1, :2])
    assert np.all(np.asarray(before[1, 2:] != after[1, 2:]).any(-1))
    changed["last"][1] = x["last"][1] = False
    before, after = (applied()(w, memory, as_experience(y), everyone(y))[0].y for y in (x, changed))
    assert np.all(np.asarray(before[1, :2] != after[1, :2]).any(-1))


def test_a_piece_that_does_not_count_leaves_no_trace_in_the_memory():
    w = {k: jnp.asarray(x, float) for k, x in by_hand.weights(disco.shapes(SMALL)).items()}
    x = experience(SMALL)
    alone = {name: value[:1] for name, value in x.items()}
    memory = disco.memory_at_birth(SMALL)
    _, both = applied()(w, memory, as_experience(x), jnp.array([True, False]))
    _, one = applied()(w, memory, as_experience(alone), jnp.array([True]))
    _, all_ = applied()(w, memory, as_experience(x), everyone(x))
    np.testing.assert_allclose(both[0], one[0], rtol=1e-6)
    assert np.max(np.abs(np.asarray(both[0] - all_[0]))) > 1e-4


def test_new_weights_are_cut_off_normals_and_biases_zero():
    w = disco.init(jax.random.key(0))
    assert {name: x.shape for name, x in w.items()} == disco.shapes()
    assert all(np.all(np.asarray(x) == 0) for name, x in w.items() if name[-1] == "b")
    std = {"lstm/linear/w": 1.0, "lstm/linear_2/w": 0.3, "lstm/lstm/linear/w": 283**-0.5}
    for name, expected in std.items():
        # A normal that is cut off at 2 has the standard deviation 0.8796.
        assert abs(np.std(w[name]) / (0.8796 * expected) - 1) < 0.02
        assert np.max(np.abs(w[name])) <= 2 * expected


def test_an_agent_s_network_is_that_of_the_paper():
    network = disco.agent_network((2, 3), 4, num_predictions=7, hidden_sizes=(8, 6), model_size=5)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[0]), network.init(jax.random.key(0))
    )
    obs = rng.normal(size=(2, 3, 2, 3))
    found = jax.jit(network.apply)(jax.tree.map(lambda x: jnp.asarray(x, float), params), obs)
    assert {name: x.shape[2:] for name, x in found._asdict().items()} == {
        "logits": (4,),
        "y": (7,),
        "z": (4, 7),
        "aux": (4, 4),
        "q": (4, 601),
    }
    for b in range(2):
        for t in range(3):
            for name, expected in by_hand.agent(params, obs[b, t]).items():
                np.testing.assert_allclose(
                    getattr(found, name)[b, t], expected, rtol=1e-5, atol=1e-5
                )


def test_a_newborn_s_policy_is_nearly_uniform():
    network = disco.agent_network((8, 8), 3)
    params = network.init(jax.random.key(0))
    logits = network.apply(params, jax.random.normal(jax.random.key(1), (20, 8, 8))).logits
    assert np.max(np.abs(logits)) < 0.5
    assert np.max(np.abs(logits)) > 1e-4


def test_where_the_weights_of_an_agent_begin():
    """All but two of the last layers begin with one over the root of their inputs, cut off at two."""
    params = disco.agent_network((8, 8), 3).init(jax.random.key(0))
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        expected = 0.01 if name in ("logits", "y") else kernel.shape[0] ** -0.5
        assert abs(np.std(kernel) / (0.8796 * expected) - 1) < 0.1, name
        assert np.max(np.abs(kernel)) <= 2 * expected, name
        assert not np.any(layer["bias"]), name


def test_values_are_squashed_and_split_over_two_bins():
    x = np.concatenate([-np.logspace(4, -4, 30), [0.0], np.logspace(-4, 4, 30)])
    expected = np.array([by_hand.squash(v) for v in x])
    np.testing.assert_allclose(disco.squash(jnp.asarray(x, float)), expected, rtol=2e-6)
    np.testing.assert_allclose(disco.unsquash(jnp.asarray(expected, float)), x, rtol=2e-5)
    p = np.asarray(disco.two_hot(jnp.asarray(x, float)))
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)
    assert np.all((p > 0).sum(-1) <= 2)
    np.testing.assert_allclose(p @ np.arange(-300, 301), expected, rtol=1e-4, atol=1e-6)
    beyond = np.asarray(disco.two_hot(jnp.array([1e9, -1e9])))
    assert beyond[0, -1] == beyond[1, 0] == 1.0
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 601))
    found = disco.values_of(jnp.asarray(logits, float))
    np.testing.assert_allclose(found, [by_hand.value(v) for v in logits], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(hidden_sizes=()), "hidden_sizes=.* must hold at least one"),
        (dict(hidden_sizes=(4, 0)), "hidden_sizes=0 must be at least 1"),
        (dict(model_size=0), "model_size=0 must be at least 1"),
        (dict(num_predictions=0), "num_predictions=0 must be at least 1"),
    ],
)
def test_a_network_without_units_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        disco.agent_network((2,), 2, **settings)
