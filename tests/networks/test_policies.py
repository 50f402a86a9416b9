import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import networks
from jaxmeta.types import TimeStep, Trajectory

DISCRETE = spaces.Discrete(3)


BOX = spaces.Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0]), (2,))


def timesteps(obs):
    flat = jnp.zeros(obs.shape[0])
    return TimeStep(obs, flat, flat, flat > 0)


@pytest.fixture(params=["categorical", "gaussian", "softmax_linear"])
def policy(request):
    space = BOX if request.param == "gaussian" else DISCRETE
    return networks.default_policy(request.param, (4,), space, (8,))


def test_unroll_is_step_by_step(policy):
    params = policy.init(jax.random.key(0))
    seen = timesteps(jax.random.normal(jax.random.key(1), (5, 4)))
    together = policy.unroll(params, policy.memory(), seen)
    for t in range(5):
        alone, memory = policy.step(params, (), jax.tree.map(lambda x, t=t: x[t], seen))
        assert memory == ()
        for x, y in zip(alone, jax.tree.map(lambda x, t=t: x[t], together), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_acting_draws_from_the_policy_and_log_probs_say_how_likely_it_was(policy):
    """Two streams of five steps, drawn one by one and looked at together."""
    params = policy.init(jax.random.key(0))
    act = networks.acting(policy.step, lambda meta, agent: agent[meta])
    seen = [timesteps(jax.random.normal(jax.random.key(n), (5, 4))) for n in range(2)]

    def drawn(timestep, key):
        action, log_prob, memory = act(key, "policy", {"policy": params}, (), timestep)
        assert memory == ()
        distribution, _ = policy.step(params, (), timestep)
        np.testing.assert_array_equal(action, distribution.sample(jax.random.clone(key)))
        return action, log_prob

    rows = [
        drawn(jax.tree.map(lambda x, t=t: x[t], stream), jax.random.key(10 * n + t))
        for n, stream in enumerate(seen)
        for t in range(5)
    ]
    action, log_prob = (jnp.stack(x).reshape(2, 5, *x[0].shape) for x in zip(*rows, strict=True))
    together = jax.tree.map(lambda *x: jnp.stack(x), *seen)
    data = Trajectory(together, action, log_prob, None, None, None, None, ())
    np.testing.assert_allclose(networks.log_probs(policy, params, data), log_prob, rtol=1e-5)
    of_one = policy.unroll(params, (), seen[1])
    of_all = networks.action_distributions(policy, params, data)
    for x, y in zip(of_all, of_one, strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-6)


def test_softmax_linear_is_exactly_its_formula(x64):
    """π(a|s) ∝ exp(φ(s,a)·θ), ∇ log π(a|s) = φ(s,a) - E_π φ(s,·), ∇² log π = -Cov_π φ."""
    table = jax.random.normal(jax.random.key(0), (3, 5))

    def features(obs):
        return table * obs[0]

    policy = networks.softmax_linear(features, num_features=5, action_space=DISCRETE)
    theta = jax.random.normal(jax.random.key(1), (5,))
    obs = jnp.array([1.7])
    phi = np.asarray(features(obs))
    p = np.exp(phi @ np.asarray(theta))
    p /= p.sum()

    def log_prob(theta, action):
        return policy.unroll({"theta": theta}, (), timesteps(obs[None])).log_prob(action[None])[0]

    mean = p @ phi
    covariance = (phi - mean).T @ np.diag(p) @ (phi - mean)
    for a in range(3):
        action = jnp.array(a)
        np.testing.assert_allclose(log_prob(theta, action), np.log(p[a]), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(log_prob)(theta, action), phi[a] - mean, rtol=1e-12)
        np.testing.assert_allclose(jax.hessian(log_prob)(theta, action), -covariance, atol=1e-12)


def test_action_features_are_one_block_an_action():
    phi = networks.action_features((2,), 3)(jnp.array([5.0, 7.0]))
    expected = np.zeros((3, 9))
    for a in range(3):
        expected[a, 3 * a : 3 * a + 3] = [5, 7, 1]
    np.testing.assert_array_equal(phi, expected)


def test_wrong_feature_shape_is_named():
    policy = networks.softmax_linear(lambda obs: obs, num_features=5, action_space=DISCRETE)
    with pytest.raises(
        ValueError, match=r"features\(obs\) has shape \(4,\); it must be .*\[3, 5\]"
    ):
        policy.unroll(policy.init(jax.random.key(0)), (), timesteps(jnp.zeros((1, 4))))


def test_softmax_linear_is_of_the_features_that_it_is_told():
    """π(a|s) ∝ exp(φ(s, a)·θ), with φ(s, a) = (s_a, s_a²)."""

    def features(obs):
        return jnp.stack([obs, obs**2], axis=-1)

    policy = networks.default_policy("softmax_linear", (3,), DISCRETE, (), features=features)
    theta = jnp.asarray([0.5, -2.0])
    assert policy.init(jax.random.key(0))["theta"].shape == (2,)
    obs = jnp.asarray([0.1, -0.4, 1.0])
    found = policy.unroll({"theta": theta}, (), timesteps(obs[None]))
    np.testing.assert_allclose(
        found.logits[0] - found.logits[0, 0],
        (features(obs) @ theta) - (features(obs) @ theta)[0],
        rtol=1e-5,
    )


def test_unknown_policy_and_sizes_are_refused():
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        networks.default_policy("gausian", (4,), BOX, (8,))
    with pytest.raises(ValueError, match="hidden_sizes=0"):
        networks.categorical_mlp((4,), DISCRETE, (8, 0))
    with pytest.raises(ValueError, match="initial_std=0"):
        networks.gaussian_mlp((4,), BOX, initial_std=0)


def test_only_a_gaussian_policy_is_given_a_standard_deviation():
    policy = networks.default_policy("mlp", (4,), BOX, (8,), initial_std=0.5)
    log_std = policy.init(jax.random.key(0))["head"]["log_std"]
    np.testing.assert_allclose(jnp.exp(log_std), 0.5, rtol=1e-6)
    for kind in ("mlp", "softmax_linear"):
        with pytest.raises(ValueError, match="initial_std=0.5 must be 1"):
            networks.default_policy(kind, (4,), DISCRETE, (8,), initial_std=0.5)


def test_new_policies_hardly_prefer_an_action():
    for kind, space in (("categorical", DISCRETE), ("softmax_linear", DISCRETE)):
        policy = networks.default_policy(kind, (4,), space, (64, 64))
        d = policy.unroll(policy.init(jax.random.key(0)), (), timesteps(jnp.ones((1, 4))))
        assert d.entropy()[0] > 0.999 * np.log(3)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_observations_of_any_shape(shape):
    policy = networks.default_policy("categorical", shape, DISCRETE, (8,))
    params = policy.init(jax.random.key(0))
    assert policy.unroll(params, (), timesteps(jnp.zeros((5, *shape)))).logits.shape == (5, 3)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_context_is_an_input_that_starts_at_zero(kind):
    space = DISCRETE if kind == "categorical" else BOX
    policy = networks.default_policy(kind, (4,), space, (8,), context_size=3)
    params = policy.init(jax.random.key(0))
    assert set(params) == {"body", "head", "context"}
    np.testing.assert_array_equal(params["context"], jnp.zeros(3))
    obs = jax.random.normal(jax.random.key(1), (1, 4))
    without = policy.unroll(params, (), timesteps(obs))
    moved = policy.unroll({**params, "context": jnp.ones(3)}, (), timesteps(obs))
    assert not jnp.allclose(without[0], moved[0], atol=1e-6)
    assert set(networks.default_policy(kind, (4,), space, (8,)).init(jax.random.key(0))) == {
        "body",
        "head",
    }


def test_observations_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"obs_shape=\(2, 0\) must hold at least one number"):
        networks.gaussian_mlp((2, 0), BOX)
