"""Properties of all agents, and settings that are wrong."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import references
from jaxmeta.types import TimeStep
from tests.references.living import episode


@pytest.mark.parametrize(
    "learner",
    [
        references.random_agent(num_actions=3),
        references.greedy(num_arms=3),
        references.epsilon_greedy(num_arms=3, epsilon=0.2),
        references.ucb1(num_arms=3, exploration=0.2),
        references.thompson(num_arms=3),
        references.gittins(num_arms=3, num_pulls=4, discount=0.5),
        references.psrl(num_states=2, num_actions=3, horizon=2),
        references.posterior_sampling(num_arms=3),
        references.posterior_sampling(num_arms=3, reward_noise=0.3, greedy=True),
    ],
    ids=[
        "random",
        "greedy",
        "epsilon_greedy",
        "ucb1",
        "thompson",
        "gittins",
        "psrl",
        "posterior",
        "probable",
    ],
)
def test_everything_is_float64_where_float_is(learner, x64):
    """A step's output has the types of its input, so that it can be scanned over."""
    agent = learner.init(jax.random.key(0), ())
    memory = learner.memory(())
    obs = jnp.eye(2)[0]
    timestep = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    with jax.debug_key_reuse(True):
        action, log_prob, after = learner.act(jax.random.key(1), (), agent, memory, timestep)
        once = episode([[0]], [[0]], [[0.0]], [[0]], num_states=2)
        updated = learner.update(jax.random.key(2), (), agent, once)
    assert action.dtype == jnp.int32
    assert log_prob.dtype == jnp.float64
    for one, other in ((memory, after), (agent, updated)):
        assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, other)
        assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)
        assert not any(x.dtype == jnp.float32 for x in jax.tree.leaves(other))


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (references.bayes_optimal_bandit, dict(num_arms=0, num_pulls=1), "num_arms=0 must be"),
        (
            references.bayes_optimal_bandit,
            dict(num_arms=5, num_pulls=100),
            "num_arms=5 with num_pulls=100 has .* states of knowledge",
        ),
        (
            references.bayes_optimal_bandit,
            dict(num_arms=10, num_pulls=40),
            "num_arms=10 with num_pulls=40 has .* states of knowledge",
        ),
        (references.bayes_optimal_dependent_bandit, dict(kind="eazy"), "kind='eazy' .*'easy'"),
        (
            references.bayes_optimal_dependent_bandit,
            dict(kind="easy", num_pulls=0),
            "num_pulls=0 must be at least 1",
        ),
        (
            references.bayes_optimal_gridnavi,
            dict(num_episodes=1, num_steps=5, size=8),
            "size=8 must be at most 7",
        ),
        (references.bayes_optimal_gridnavi, dict(num_episodes=0, num_steps=5), "num_episodes=0"),
        (
            references.ucb1,
            dict(num_arms=2, exploration=-1.0),
            "exploration=-1.0 must lie between 0",
        ),
        (references.epsilon_greedy, dict(num_arms=2, epsilon=1.5), "epsilon=1.5 must lie between"),
        (
            references.gittins,
            dict(num_arms=2, num_pulls=3, discount=1.0),
            "discount=1.0 must be below",
        ),
        (
            references.gittins_indices,
            dict(num_pulls=0, discount=0.9),
            "num_pulls=0 must be at least",
        ),
        (references.thompson, dict(num_arms=0), "num_arms=0 must be at least 1"),
        (references.posterior_sampling, dict(num_arms=0), "num_arms=0 must be at least 1"),
        (references.posterior_sampling, dict(num_arms=2, num_nodes=1), "num_nodes=1 must be at"),
        (references.posterior_sampling, dict(num_arms=2, reward_noise=0.0), "reward_noise=0.0"),
        (references.dark_room_sampling, dict(size=1), "size=1 must be at least 2"),
        (references.dark_room_sampling, dict(draw="steps"), "draw='steps' .*'step'"),
        (references.dark_room_sampling, dict(prior="test"), "prior='test' is unknown"),
        (references.told_key_to_door, dict(size=1), "size=1 must be at least 2"),
        (references.room_prior, dict(split_seed=-1), "split_seed=-1 must be at least 0"),
        (references.psrl, dict(horizon=0), "horizon=0 must be at least 1"),
        (references.psrl, dict(reward_noise=0.0), "reward_noise=0.0 must lie between 1e-06"),
    ],
)
def test_bad_settings_are_named(function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(**settings)
