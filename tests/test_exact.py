import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import exact

pytestmark = pytest.mark.usefixtures("x64")
S, A, H = 3, 2, 4


@pytest.fixture
def mdp(x64):
    return exact.random_mdp(jax.random.key(0), num_states=S, num_actions=A, discount=0.9)


@pytest.fixture
def policy(x64):
    return jax.nn.softmax(jax.random.normal(jax.random.key(1), (S, A)))


def test_random_mdp_is_an_mdp(mdp):
    np.testing.assert_allclose(mdp.transition.sum(-1), 1.0)
    np.testing.assert_allclose(mdp.initial.sum(), 1.0)
    assert mdp.reward.dtype == mdp.transition.dtype == jnp.float64


def test_paths_cover_everything_once(mdp, policy):
    states, actions = exact.trajectories(S, A, H)
    assert states.shape == actions.shape == ((S * A) ** H, H)
    assert len({(*s, *a) for s, a in zip(states.tolist(), actions.tolist(), strict=True)}) == len(
        states
    )
    p = exact.probabilities(mdp, policy, states, actions)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-14)


def test_backward_induction_agrees_with_enumeration(mdp, policy):
    states, actions = exact.trajectories(S, A, H)
    p = exact.probabilities(mdp, policy, states, actions)
    returns = (mdp.reward[states, actions] * mdp.discount ** jnp.arange(H)[None, :]).sum(1)
    np.testing.assert_allclose(exact.expected_return(mdp, policy, H), p @ returns, rtol=1e-13)


def test_values_approach_the_infinite_horizon_s(mdp, policy):
    transition = jnp.einsum("sa,sat->st", policy, mdp.transition)
    reward = jnp.sum(policy * mdp.reward, axis=1)
    stationary = jnp.linalg.solve(jnp.eye(S) - 0.9 * transition, reward)
    np.testing.assert_allclose(exact.values(mdp, policy, 400)[0], stationary, rtol=1e-12)
    assert jnp.all(exact.values(mdp, policy, 5)[-1] == 0)
