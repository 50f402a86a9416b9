"""Every transformation of every registered gymnax environment, and all of them at their defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import transform
from jaxmeta.tasks.transform import wrappers
from tests.probes import thorough
from tests.tasks.transform.shared import (
    ENVIRONMENTS,
    KEY,
    allowed,
    discrete,
    episodes,
    everything,
    random_actions,
    sized,
)

QUICK = ("FrozenLake-misc", "Pendulum-v1")


@pytest.mark.parametrize("name", thorough(ENVIRONMENTS, QUICK))
def test_every_environment_takes_every_transformation(name):
    """Under ``vmap`` over tasks as one by one, over several episodes, and again with the same key."""
    family = everything(name)
    actions = random_actions(family, 0, 14)
    for split in tasks.SPLITS:
        one = jax.eval_shape(getattr(family, split), KEY)
        assert not any(x.weak_type for x in jax.tree.leaves(one))
    drawn = jax.jit(lambda: tasks.sample_tasks(jax.random.key(1), family, 2, split="train"))()
    run = jax.jit(jax.vmap(lambda task: episodes(KEY, task, family.env, actions)))
    with allowed(name):
        obs, reward, last = run(drawn)
    assert obs.shape == (2, 14, *family.observation_shape)
    assert np.all(np.isfinite(obs))
    assert np.all(np.isfinite(reward))
    assert np.all(last[:, 5] | last[:, :5].any(axis=1))  # the horizon
    assert not np.array_equal(obs[0], obs[1]) or not np.array_equal(reward[0], reward[1])
    for m in range(2):
        one = jax.tree.map(lambda x, m=m: jnp.stack([x[m]] * 2), drawn)
        with allowed(name):
            expected = run(one)
        for batched, alone in zip((obs, reward, last), expected, strict=True):
            np.testing.assert_allclose(batched[m], alone[0], rtol=1e-5, atol=1e-5)


def test_names_say_what_was_done():
    family = transform.from_gymnax("Breakout-MinAtar", horizon=3)
    assert family.name == "Breakout-MinAtar"
    family = transform.sticky_actions(transform.permuted_actions(family))
    assert family.name == "sticky_actions_permuted_actions_Breakout-MinAtar"
    assert family.env.name == "StickyActionsRemappedActionsBreakout-MinAtar"


def test_bad_settings_are_named(own):
    with pytest.raises(ValueError, match="name='Breakout' is unknown: did you mean 'Breakout-Min"):
        transform.from_gymnax("Breakout", horizon=3)
    with pytest.raises(TypeError, match=r"desc=\['SG'\] must be hashable"):
        transform.from_gymnax("FrozenLake-misc", horizon=3, desc=["SG"])
    catch = transform.from_gymnax("Catch-bsuite", horizon=3)
    pendulum = transform.from_gymnax("Pendulum-v1", horizon=3)
    lake = transform.from_gymnax("FrozenLake-misc", horizon=3)
    with pytest.raises(ValueError, match="family='Pendulum-v1' has actions in Box.*discrete"):
        transform.permuted_actions(pendulum)
    with pytest.raises(ValueError, match="family='Catch-bsuite' has actions in Discrete"):
        transform.flipped_actions(catch)
    with pytest.raises(ValueError, match=r"has actions of shape \(1,\), not \[A\]"):
        transform.rotated_actions(pendulum)
    with pytest.raises(ValueError, match="has observations in Discrete"):
        transform.masked_observations(lake, num_hidden=1)
    with pytest.raises(ValueError, match="num_hidden=26 must be at most half of 50"):
        transform.masked_observations(catch, num_hidden=26)
    with pytest.raises(ValueError, match="axis=2 must be one of the 2"):
        transform.permuted_observations(catch, axis=2)
    with pytest.raises(ValueError, match="num_buttons=2 must be at least 3"):
        transform.remapped_actions(catch, num_buttons=2)
    with pytest.raises(ValueError, match="parameter='gravity' is unknown"):
        transform.drawn_parameters(pendulum, {"gravity": (1.0, 2.0)})
    with pytest.raises(ValueError, match="g=.* low < high"):
        transform.drawn_parameters(pendulum, {"g": (2.0, 2.0)})
    with pytest.raises(ValueError, match="g=.* must be positive"):
        transform.drawn_parameters(pendulum, {"g": (-2.0, 2.0)})
    with pytest.raises(ValueError, match="parameter='gravity' is unknown"):
        transform.with_parameters(pendulum, gravity=1.0)
    with pytest.raises(ValueError, match="leaf='goal' is unknown"):
        transform.pinned(catch, "goal")
    with pytest.raises(ValueError, match=r"leaves=\(\) must hold at least one"):
        transform.pinned(catch)
    with pytest.raises(ValueError, match="scale=1 must be above 1"):
        transform.scaled_rewards(catch, scale=1)
    with pytest.raises(ValueError, match=r"outside=0.1 must be at least high=0.25"):
        transform.sticky_actions(catch, outside=0.1)


@pytest.mark.parametrize(
    "name",
    thorough(["CartPole-v1", "Asterix-MinAtar", "FrozenLake-misc", "Reacher-misc"], QUICK),
)
def test_at_their_defaults_transformations_change_nothing(name):
    inner = transform.from_gymnax(name, horizon=8)
    family = (
        transform.permuted_actions(inner)
        if discrete(inner)
        else transform.rotated_actions(transform.flipped_actions(inner))
    )
    family = transform.permuted_observations(family)
    if sized(inner):
        family = transform.masked_observations(family, num_hidden=1)
    family = transform.delayed_rewards(transform.signed_rewards(family), max_delay=3)
    default = family.env.default_params

    def limited(task):  # the default's time limit is the environment's own
        return wrappers.replaced(task, {"max_steps_in_episode": 8})

    actions = random_actions(inner, 0, 20)
    changed = jax.jit(lambda: episodes(KEY, limited(default), family.env, actions))()
    plain = jax.jit(lambda: episodes(KEY, inner.train(None), inner.env, actions))()
    for got, expected in zip(changed, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
