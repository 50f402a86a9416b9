"""Flax modules of one's own read observations, for policies, values and recurrent networks alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmeta import networks, tasks
from jaxmeta.networks.recurrent import gru
from jaxmeta.types import TimeStep


class Linen(nn.Module):
    size: int = 3

    @nn.compact
    def __call__(self, obs):
        return nn.tanh(nn.Dense(self.size)(obs.reshape(-1)))


class Running(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.BatchNorm(use_running_average=True)(obs.reshape(-1))


class Image(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(3)(obs)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(50, 3, rngs=rngs)

    def __call__(self, obs):
        return jnp.tanh(self.dense(obs.reshape(-1)))


class Dropping(NNX):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.counted = nnx.Variable(jnp.zeros(3))


class Masked(NNX):
    def __init__(self, rngs, deterministic=False):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=deterministic, rngs=rngs)

    def __call__(self, obs):
        return self.dropout(super().__call__(obs))


class LinenMasked(nn.Module):
    deterministic: bool = False

    @nn.compact
    def __call__(self, obs):
        return nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(3)(obs.reshape(-1)))


class LinenNoise(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(3)(obs.reshape(-1)) + jax.random.normal(self.make_rng("noise"), (3,))


@pytest.fixture(scope="module")
def family():
    return tasks.make("catch")  # images [10, 5], three actions


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


@pytest.mark.parametrize("module", [Linen(), lambda rngs: NNX(rngs)], ids=["linen", "nnx"])
def test_modules_of_both_kinds_are_pure_functions_of_their_parameters(family, module):
    made = networks.encoder(family, module)
    assert made.size == 3
    params, other = (made.init(jax.random.key(i)) for i in (0, 1))
    assert np.any(flat(params) != flat(other))
    obs = jax.random.uniform(jax.random.key(2), (10, 5))
    features = jax.jit(made.apply)(params, obs)
    leaves = jax.tree.leaves(params)
    kernel, bias = sorted(leaves, key=lambda x: -x.ndim)
    np.testing.assert_allclose(features, np.tanh(obs.reshape(-1) @ kernel + bias), rtol=1e-4)
    assert networks.encoder(family, made) is made


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Linen, TypeError, r"module is the class Linen; it must be a linen module: Linen\("),
        (NNX, TypeError, r"module is the class NNX; it must be a function .*: lambda rngs: NNX\("),
        (dict, TypeError, "module is the class dict; it must be a linen module"),
        (lambda rngs: Masked(rngs), ValueError, "module draws random numbers when it is called"),
        (LinenMasked(), ValueError, "module draws random numbers when it is called"),
        (LinenNoise(), ValueError, "module draws random numbers when it is called"),
        (nn.Dropout(0.5, deterministic=False), ValueError, "module draws random numbers"),
        (Running(), ValueError, "batch_stats beside parameters"),
        (Image(), ValueError, r"it must return features of shape \[F\]"),
        (NNX(nnx.Rngs(0)), TypeError, "already made"),
        (lambda rngs: Dropping(rngs), ValueError, "has state beside parameters"),
        (lambda rngs: 3, TypeError, "must be an nnx module"),
        (
            nn.Dropout(0.5),
            ValueError,
            r"module failed on one observation, an array of shape \(10, 5\)",
        ),
        (nn.LSTMCell(3), ValueError, "module failed on one observation"),
    ],
)
def test_modules_that_do_not_fit_are_refused(family, module, error, message):
    with pytest.raises(error, match=message):
        networks.encoder(family, module)


def test_modules_that_draw_nothing_may_be_able_to(family):
    for module in (lambda rngs: Masked(rngs, deterministic=True), LinenMasked(deterministic=True)):
        made = networks.encoder(family, module)
        obs = jax.random.uniform(jax.random.key(2), (10, 5))
        assert np.all(made.apply(made.init(jax.random.key(0)), obs) != 0)


def test_images_are_needed():
    with pytest.raises(ValueError, match="where images"):
        networks.cnn(tasks.make("navigation"))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2), (4, 3), (5, 1)])
def test_convolutions_are_flax_s(family, kernel, stride):
    made = networks.cnn(family, channels=(3,), kernel=kernel, stride=stride, size=4)
    params = made.init(jax.random.key(0))
    obs = jax.random.uniform(jax.random.key(1), (10, 5))
    layer = nn.Conv(3, (kernel, kernel), (stride, stride))
    image = nn.relu(layer.apply({"params": params["Conv_0"]}, obs[..., None]))
    dense = params["Dense_0"]
    expected = nn.relu(image.reshape(-1) @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(made.apply(params, obs), expected, rtol=1e-4, atol=1e-5)


def test_policies_values_and_recurrent_networks_read_them(family):
    obs = jax.random.uniform(jax.random.key(1), (2, 10, 5))
    policy = networks.encoded_policy(family, Linen(), hidden_sizes=(4,))
    params = policy.init(jax.random.key(0))
    assert sorted(params) == ["body", "encoder", "head"]
    zeros = jnp.zeros(2)
    distribution = policy.unroll(params, (), TimeStep(obs, zeros.astype(int), zeros, zeros > 0))
    assert distribution.logits.shape == (2, 3)
    value = networks.encoded_value(family, Linen())
    v = value.apply(value.init(jax.random.key(0)), obs)
    assert v.shape == (2,)
    network = networks.recurrent_actor_critic(family, gru(4), encoder_sizes=(5,), encoder=Linen())
    params = network.init(jax.random.key(0))
    assert sorted(params) == ["encoder", "memory", "observation", "policy", "value"]
    rows = networks.Inputs(
        obs.reshape(2, -1), jnp.ones((2, 4)), jnp.zeros((2, 2)), jnp.array([True, False])
    )
    state, stepped = network.initial(), []
    for t in range(2):
        one, state = network.step(params, state, jax.tree.map(lambda x, t=t: x[t], rows))
        stepped.append(one.logits)
    unrolled, v = network.unroll(params, network.initial(), rows)
    np.testing.assert_allclose(unrolled.logits, jnp.stack(stepped), rtol=1e-5, atol=1e-6)
    assert v.shape == (2,)


def test_a_head_of_one_s_own():
    family = tasks.make("pendulum")
    chosen = lambda size: networks.action_head(size, family.action_space, squashed=True)  # noqa: E731
    policy = networks.encoded_policy(family, Linen(), head=chosen)
    params = policy.init(jax.random.key(0))
    timestep = TimeStep(jnp.zeros(family.observation_shape), jnp.zeros(1), 0.0, True)
    assert isinstance(policy.step(params, (), timestep)[0], networks.TanhGaussian)
    network = networks.recurrent_actor_critic(family, gru(4), head=chosen)
    inputs = networks.Inputs(jnp.zeros(3), jnp.zeros(2), jnp.zeros(2), jnp.array(True))
    made, _ = network.step(network.init(jax.random.key(0)), network.initial(), inputs)
    assert isinstance(made, networks.TanhGaussian)


def test_a_network_of_another_family_is_refused_by_name(family):
    """Before anything compiles, and where its shapes would fit by chance, too."""
    from jaxmeta.algorithms import maml, rl2
    from jaxmeta.tasks import transform

    fewer = transform.remapped_actions(family, num_buttons=4)
    policy = networks.encoded_policy(family, Linen())
    for other, message in (
        (tasks.make("navigation"), "policy does not fit family 'navigation'"),
        (fewer, "it chooses among 3 actions, and there are 4"),
    ):
        with pytest.raises(ValueError, match=message):
            maml.maml(other, policy=policy)
    network = networks.recurrent_actor_critic(family, gru(4))
    with pytest.raises(ValueError, match="network does not fit family 'deep_sea'"):
        rl2.rl2(tasks.make("deep_sea"), network=network)
