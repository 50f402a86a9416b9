"""What is known of gymnax's environments, and families of them as they are."""

import dataclasses

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.utils import load_mnist

from jaxmeta.tasks import transform
from jaxmeta.tasks.transform.wrappers import innermost
from tests.probes import thorough
from tests.tasks.transform.shared import (
    ENVIRONMENTS,
    KEY,
    allowed,
    episodes,
    random_actions,
)


def test_what_is_unsupported_needs_a_download(monkeypatch):
    assert set(transform.UNSUPPORTED) == {"MNISTBandit-bsuite"}
    assert set(transform.UNSUPPORTED) | set(ENVIRONMENTS) == set(gymnax.registered_envs)

    def refused(url, filename):
        raise ConnectionError(url)

    monkeypatch.setattr(load_mnist, "urlretrieve", refused)
    monkeypatch.setattr(load_mnist.path, "isfile", lambda name: False)
    with pytest.raises(ConnectionError):
        transform.from_gymnax("MNISTBandit-bsuite", horizon=1)


@pytest.mark.parametrize(
    "name",
    thorough(ENVIRONMENTS, ("CartPole-v1", "Catch-bsuite", "PointRobot-misc", "Swimmer-misc")),
)
def test_identity_lists_what_a_reset_draws_and_no_step_changes(name):
    family = transform.from_gymnax(name, horizon=50)
    task = family.train(None)
    switches = {"sample_action_map", "resample_goal_pos"} & set(dir(task))
    task = task.replace(**{switch: True for switch in switches})
    actions = random_actions(family, 0, 12)

    def two_states(key):
        _, first = family.env.reset_env(key, task)
        first = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), first)

        def step(state, inputs):
            after = family.env.step_env(*inputs[:1], state, inputs[1], task)[1]
            return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), after, state), None

        return first, jax.lax.scan(step, first, (jax.random.split(key, 12), actions))[0]

    with allowed(name):
        first, later = jax.jit(jax.vmap(two_states))(jax.random.split(jax.random.key(0), 8))
    found, first, later = set(), innermost(first), innermost(later)
    for field in dataclasses.fields(first):
        before, after = (np.asarray(getattr(x, field.name)) for x in (first, later))
        if np.array_equal(before, after) and not np.all(before == before[:1]):
            found.add(field.name)
    found -= {"ball_x"} if name == "Catch-bsuite" else set()  # it falls straight down, and is seen
    # A context of one bit is always asked for as a whole.
    found |= {"query"} if name == "MemoryChain-bsuite" else set()
    assert found == set(transform.IDENTITY.get(name, ()))


def test_your_own_environment_without_a_time_limit_gets_one(own):
    family = transform.from_gymnax(own, horizon=3)
    assert transform.parameter_fields(family) == ("number",)
    obs, reward, last = episodes(KEY, family.train(None), family.env, jnp.zeros(7, int))
    assert last.tolist() == [False, False, True] * 2 + [False]
    assert obs[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert reward.tolist() == [2.0] * 7
    _, state = family.env.reset_env(KEY, family.train(None))
    assert family.env.observe(KEY, state, None, family.train(None)) == 0


def test_the_horizon_is_the_time_limit_and_settings_reach_the_constructor():
    family = transform.from_gymnax("DeepSea-bsuite", horizon=3, size=5)
    assert family.observation_shape == (5, 5)
    _, _, last = episodes(KEY, family.train(None), family.env, jnp.zeros(7, int))
    assert last.tolist() == [False, False, True] * 2 + [False]
    assert transform.from_gymnax("BernoulliBandit-misc", horizon=3).train(
        None
    ).max_steps_in_episode.dtype == jnp.result_type(float)
