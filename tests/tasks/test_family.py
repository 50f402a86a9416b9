import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import tasks

FEW = {"dependent_bandit", "discounting_chain", "gridnavi", "gridworld", "t_maze"}
"""Families in which a few draws may coincide, in one split at least and in what is looked at."""
ONE = {"catch"}
"""Of one task alone."""


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_samplers_make_batches_of_typed_leaves(name, split):
    family = tasks.make(name)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 12, split=split)
    one = getattr(family, split)(jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(one)
    for many, single in zip(jax.tree.leaves(drawn), jax.tree.leaves(one), strict=True):
        assert many.shape == (12, *single.shape)
        assert many.dtype == single.dtype
        assert not many.weak_type
    # The task varies, and every draw is a draw of its own.
    varying = [x for x in jax.tree.leaves(drawn) if not jnp.all(x == x[:1])]
    assert bool(varying) == (name not in ONE)
    if name not in FEW:
        for x in varying:
            assert len(jnp.unique(x.reshape(12, -1)[:, 0])) == 12


@pytest.mark.parametrize("name", tasks.names())
def test_spaces_are_those_of_the_environment(name):
    family = tasks.make(name)
    obs, _ = family.env.reset_env(jax.random.key(0), family.train(jax.random.key(1)))
    assert obs.shape == family.observation_shape
    action = family.random_action(jax.random.key(2))
    assert action.shape == family.action_space.shape
    assert family.action_space.contains(action)
    assert family.name == name


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "tabular"])
def test_random_actions_are_uniform(name):
    family = tasks.make(name)
    actions = jax.vmap(family.random_action)(jax.random.split(jax.random.key(0), 20_000))
    assert actions.dtype == family.action_space.dtype
    counts = np.bincount(actions, minlength=family.action_space.n)
    assert counts.size == family.action_space.n
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
