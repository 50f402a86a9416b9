"""Craftax's worlds as tasks: they last from episode to episode, and an agent learns in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.runs import training
from jaxmeta.tasks import craftax
from tests.probes import constant_learner

package = pytest.importorskip("craftax.craftax_env")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:craftax.*")


@pytest.fixture(scope="module")
def family():
    return craftax.craftax(horizon=4)


@pytest.fixture(scope="module")
def worlds(family):
    return jax.jit(lambda: tasks.sample_tasks(jax.random.key(0), family, 2, split="train"))()


def test_the_spaces_are_craftax_s(family):
    assert family.observation_shape == (1345,)
    assert family.action_space.n == 17
    assert craftax.craftax(horizon=4) is family


def test_steps_are_those_of_craftax_and_a_world_survives_the_end_of_an_episode(family, worlds):
    learner, num_steps = constant_learner(3), 9
    setup = rollouts.Setup(learner, family.env, num_streams=1, num_steps=num_steps)
    task = jax.tree.map(lambda x: x[0], worlds)
    data = jax.jit(lambda: rollouts.sample(jax.random.key(1), None, task, None, setup=setup))()
    obs, last = np.asarray(data.timestep.obs[0]), np.asarray(data.last[0])
    np.testing.assert_array_equal(last, [False, False, False, True] * 2 + [False])
    for start in (0, 4, 8):
        np.testing.assert_array_equal(obs[start], task["obs"])
    env = package.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    with jax.numpy_rank_promotion("allow"):
        after, *_ = jax.jit(env.step_env)(
            jax.random.key(2), task["state"], jnp.asarray(3), env.default_params
        )
    # The map moves with the player, who is sure to move or to turn; animals move at random.
    assert np.mean(np.asarray(after) == np.asarray(data.next_obs[0, 0])) > 0.97
    assert np.any(np.asarray(worlds["obs"][0]) != np.asarray(worlds["obs"][1]))


@pytest.mark.slow
def test_rl2_learns_in_it(in_earnest):
    """More than random actions earn, which is 1.2 in 100 steps."""
    family = craftax.craftax(horizon=50)
    algorithm = rl2(family, Config(num_minibatches=2, num_epochs=2), Hyper(learning_rate=2e-3))
    log = []
    plan = training.Config(meta_updates=40, num_tasks=64)
    training.train(algorithm, family, plan, sink=log.append)
    first, last = (np.mean([x["return/trial"] for x in part]) for part in (log[:5], log[-5:]))
    assert last > first + 0.4


def test_settings():
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        craftax.craftax(horizon=0)
    with pytest.raises(TypeError, match="classic=3 must be of type bool"):
        craftax.craftax(classic=3)
