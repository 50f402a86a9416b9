"""What gymnax does that this library works around. A test that fails here says that an upgrade changed it, and
where the work-around is that may now be wrong or needless."""

import dataclasses
import importlib.metadata
import re
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import pytest

from jaxmeta.tasks import transform


def make(name):
    env, params = gymnax.make(name)
    return env, params


def stepped(name, action, key=0):
    env, params = make(name)
    _, state = env.reset(jax.random.key(key), params)
    return env, params, state, env.step(jax.random.key(1), state, action, params)


def test_a_step_has_six_values_and_a_step_without_a_reset_five():
    """`rollout` takes the five and asks `is_truncated`."""
    env, params, state, values = stepped("CartPole-v1", jnp.int32(0))
    assert len(values) == 6
    assert "final_observation" in values[-1]
    assert len(env.step_env(jax.random.key(1), state, jnp.int32(0), params)) == 5
    assert env.is_truncated(state, params).dtype == bool


def test_six_is_needed_and_not_declared():
    """So it is among this library's dependencies."""
    declared = importlib.metadata.requires("gymnax") or []
    assert not any(re.match(r"six\b", line) for line in declared)
    hidden = "import sys; sys.modules['six'] = None; import gymnax"
    failed = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "six" in failed.stderr


# Those of the others are drawn only where their constructors are asked to.
@pytest.mark.parametrize(
    "name", sorted({*transform.IDENTITY} - {"DeepSea-bsuite", "FourRooms-misc"})
)
def test_what_tells_tasks_apart_is_drawn_at_every_reset(name):
    """With the same parameters: `transform.pinned` keeps it, and the library's own bandits, navigation and mazes
    have it in their parameters."""
    env, params = make(name)
    keys = jax.random.split(jax.random.key(0), 20)
    _, states = jax.vmap(env.reset, (0, None))(keys, params)
    drawn = [getattr(states, leaf) for leaf in transform.IDENTITY[name]]
    assert any(not jnp.array_equal(x, jnp.broadcast_to(x[0], x.shape)) for x in drawn)


def test_spaces_of_states_need_parameters_that_are_not_traced():
    """Spaces are asked of an environment's default parameters, outside of any trace."""
    env, params = make("CartPole-v1")
    env.state_space(params)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.eval_shape(
            lambda params: env.state_space(params).sample(jax.random.key(0)),
            jax.tree.map(jnp.asarray, params),
        )


def test_observations_and_rewards_may_be_integers():
    """`rollout` casts them to float, once."""
    for name in ("FourRooms-misc", "FrozenLake-misc"):
        env, params = make(name)
        obs, _ = env.reset(jax.random.key(0), params)
        assert obs.dtype == jnp.int32
    for name in ("BernoulliBandit-misc", "UmbrellaChain-bsuite"):
        assert stepped(name, jnp.int32(0))[-1][2].dtype == jnp.int32


def test_a_space_may_declare_another_type_than_is_observed():
    """Families are asked for shapes alone."""
    env, params = make("Catch-bsuite")
    obs, _ = env.reset(jax.random.key(0), params)
    assert env.observation_space(params).dtype == jnp.int32
    assert obs.dtype == jnp.float32


def test_environments_of_equal_settings_are_not_equal():
    """Each would compile anew: this library keeps one for equal settings."""
    assert make("CartPole-v1")[0] != make("CartPole-v1")[0]


def test_termination_and_truncation_may_come_together():
    """In `rollout` termination wins."""
    env, params = make("DeepSea-bsuite")
    _, state = env.reset(jax.random.key(0), params)
    for _ in range(env.size):
        _, state, _, terminated, _ = env.step_env(jax.random.key(1), state, jnp.int32(0), params)
    assert terminated
    assert env.is_truncated(state, params)


def test_cartpole_reads_products_of_its_parameters_and_not_the_parameters():
    """`tasks.control` sets ``total_mass`` and ``polemass_length`` beside the masses and the length."""
    env, params = make("CartPole-v1")
    _, state = env.reset(jax.random.key(0), params)

    def after(**changes):
        changed = params.replace(**changes)
        return env.step_env(jax.random.key(1), state, jnp.int32(1), changed)[0]

    assert jnp.array_equal(after(), after(masscart=5.0))
    assert not jnp.array_equal(after(), after(total_mass=5.0))
    assert not jnp.array_equal(after(), after(polemass_length=0.5))
    assert "masscart" in {field.name for field in dataclasses.fields(params)}


def test_the_arm_does_not_clip_its_actions():
    """`tasks.reaching` does."""
    env, params = make("Reacher-misc")
    _, state = env.reset(jax.random.key(0), params)
    size = env.action_space(params).shape

    def reward(torque):
        action = jnp.full(size, torque)
        return env.step_env(jax.random.key(1), state, action, params)[0]

    high = jnp.max(env.action_space(params).high)
    assert not jnp.array_equal(reward(high), reward(10 * high))
