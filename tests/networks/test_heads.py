"""Heads of policies: which distributions they give, in which units, and for which spaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import networks
from jaxmeta.types import TimeStep

DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0]), (2,))


def timesteps(obs):
    flat = jnp.zeros(obs.shape[0])
    return TimeStep(obs, flat, flat, flat > 0)


@pytest.mark.parametrize("kind", ["categorical", "softmax_linear"])
def test_a_discrete_policy_on_a_continuous_space_is_refused(kind):
    with pytest.raises(ValueError, match="needs a discrete action space, not Box.*use gaussian"):
        networks.default_policy(kind, (4,), BOX, (8,))


def test_a_gaussian_on_a_discrete_space_is_refused():
    with pytest.raises(ValueError, match="needs a continuous action space.*Discrete"):
        networks.default_policy("gaussian", (4,), DISCRETE, (8,))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_actions_of_another_rank_are_refused(shape):
    with pytest.raises(ValueError, match="needs actions of one axis, not of shape"):
        networks.gaussian_mlp((4,), spaces.Box(-1.0, 1.0, shape))


def test_gaussian_is_in_units_of_the_action_space():
    policy = networks.gaussian_mlp((4,), BOX, (8,), initial_std=0.5)
    params = policy.init(jax.random.key(0))
    d = policy.unroll(params, (), timesteps(jnp.zeros((1, 4))))
    np.testing.assert_allclose(d.mean[0], [0.0, 0.5], atol=1e-6)  # the centre
    np.testing.assert_allclose(jnp.exp(d.log_std[0]), [1.0, 0.25], rtol=1e-5)  # half of half-widths
    unbounded = spaces.Box(-jnp.inf, jnp.inf, (2,))
    d = networks.gaussian_mlp((4,), unbounded, (8,)).unroll(
        params, (), timesteps(jnp.zeros((1, 4)))
    )
    np.testing.assert_allclose(d.mean[0], 0.0, atol=1e-6)


def test_the_head_is_the_last_layer_with_its_spread():
    params = networks.gaussian_mlp((4,), BOX, (8, 6)).init(jax.random.key(0))
    shapes = sorted(x.shape for x in jax.tree.leaves(params["head"]))
    assert shapes == [(2,), (2,), (6, 2)]  # bias, log_std, kernel
    params = networks.categorical_mlp((4,), DISCRETE, ()).init(jax.random.key(0))
    assert sorted(x.shape for x in jax.tree.leaves(params)) == [(3,), (4, 3)]


LARGEST = float(np.finfo(np.float32).max)


SIDES = {
    "bounded": ((-1.0, 3.0), (1.0, 2.0)),
    "from below": ((0.0, np.inf), (1.0, 1.0)),
    "from above": ((-np.inf, 0.0), (-1.0, 1.0)),
    "unbounded": ((-np.inf, np.inf), (0.0, 1.0)),
    "largest": ((-LARGEST, LARGEST), (0.0, 1.0)),
    "largest above": ((0.0, LARGEST), (1.0, 1.0)),
    "large": ((-1e30, 1e30), (0.0, 1.0)),
}

"""``(low, high), (centre, half width)`` of one dimension."""


@pytest.mark.parametrize("name", [*SIDES, "mixed"])
def test_a_new_gaussian_is_centred_and_scaled_by_the_nominal_range(name):
    sides = list(SIDES.values()) if name == "mixed" else [SIDES[name]] * 2
    (low, high), (centre, half_width) = np.moveaxis(np.array(sides), 0, 2)
    space = spaces.Box(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32), low.shape)
    policy = networks.gaussian_mlp((3,), space, (4,), initial_std=0.25)
    params = policy.init(jax.random.key(0))
    params["head"]["mean"] = jax.tree.map(jnp.zeros_like, params["head"]["mean"])
    found, _ = policy.step(params, (), jax.tree.map(lambda x: x[0], timesteps(jnp.ones((1, 3)))))
    np.testing.assert_allclose(found.mean, centre, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_std), 0.25 * half_width, rtol=1e-6)
    drawn = found.sample(jax.random.key(1))
    assert np.all(np.isfinite(drawn))
    assert np.isfinite(found.log_prob(drawn))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Box(0, 2**31 - 1, (2,), jnp.int32), "action_space=Box.* is of integers without"),
        (spaces.Box(-1.0, 1.0, (0,)), "action_space=Box.* is empty"),
        (
            spaces.Box(jnp.zeros(2), jnp.array([1.0, 0.0]), (2,)),
            "action_space=Box.* has low == high in a dimension",
        ),
        (spaces.Box(jnp.zeros(3), 1.0, (2,)), "bounds of shapes .* do not fit a Box of shape"),
        (spaces.Box(1.0, -1.0, (2,)), "must have low <= high"),
        (spaces.Dict({"a": BOX}), r"action_space=Dict\(.*must be Discrete or Box"),
        (spaces.Tuple([BOX, DISCRETE]), r"action_space=Tuple\(.*must be Discrete or Box"),
        (spaces.Discrete(0), "action_space=Discrete.* must have at least one action"),
    ],
)
def test_action_spaces_of_no_policy_are_refused(space, told):
    for make in (
        lambda: networks.default_policy("mlp", (3,), space, ()),
        lambda: networks.action_head(3, space),
    ):
        with pytest.raises(ValueError, match=told):
            make()
