"""Resets and steps do as a plain loop over gymnax's own step does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import tasks
from jaxmeta.tasks import InvalidEnvironment, boxes
from tests.probes import Counter, CounterParams, thorough
from tests.tasks.acting import acted, counting
from tests.tasks.generated import FAULTS, Resetting, drawn


def by_hand(family, task, actions):
    """A plain loop over gymnax's own ``step``, begun anew after ``family.horizon`` steps."""
    env, space = family.env.env, family.action_space
    key = jax.random.key(9)  # these environments draw nothing
    obs, state = env.reset(key, task)
    age, rows = 0, []
    for action in actions:
        if isinstance(space, spaces.Box):
            low, high = boxes.bounds(space)
            action = np.clip(action, low, high).astype(action.dtype)
        before = obs
        obs, state, reward, terminated, truncated, info = env.step(key, state, action, task)
        age += 1
        last = bool(terminated) or bool(truncated) or age >= family.horizon
        if last and not (terminated or truncated):
            obs, state = env.reset(key, task)
        age = 0 if last else age
        final = info["final_observation"]
        rows.append((before, reward, 1.0 - terminated, last, final, state))
    return rows


def check_one(seed):
    family, plan = drawn(seed)
    task = family.train(jax.random.key(seed))
    if plan.fault is not None:
        with pytest.raises(InvalidEnvironment):
            tasks.check_promises(family)
        if not plan.fault.startswith("tasks of"):  # those, a rollout of one task cannot know
            with jax.disable_jit(), pytest.raises(InvalidEnvironment):
                acted(family, task, 1)
        return
    tasks.check_promises(family)
    num_steps = 2 * plan.horizon + 1
    _, (data, states) = acted(family, task, num_steps)
    for x in (data.timestep.obs, data.next_obs, data.reward, data.discount):
        assert x.dtype == jnp.float32
    assert data.timestep.first[0]
    rows = by_hand(family, task, np.asarray(data.action))
    for t, (obs, reward, discount, last, final, state) in enumerate(rows):
        where = f"seed {seed}, step {t}"
        close = dict(rtol=2e-3 if plan.float_dtype == jnp.float16 else 1e-5, atol=1e-6)
        np.testing.assert_allclose(data.timestep.obs[t], obs, **close, err_msg=where)
        np.testing.assert_allclose(data.next_obs[t], final, **close, err_msg=where)
        np.testing.assert_allclose(data.reward[t], reward, **close, err_msg=where)
        assert (data.discount[t], data.last[t]) == (discount, last), where
        seen = jax.tree.map(lambda x, t=t: x[t], states).inner
        assert jax.tree.structure(seen) == jax.tree.structure(state)
        for ours, theirs in zip(jax.tree.leaves(seen), jax.tree.leaves(state), strict=True):
            if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
                np.testing.assert_allclose(ours, theirs, **close, err_msg=where)


@pytest.mark.parametrize("seed", thorough(range(64), (*range(0, 10, 2), *range(1, 64, 2))))
def test_drawn_environments(seed):
    """Every other has a planted fault. The others are, state by state, a plain loop over gymnax's own step."""
    check_one(seed)


@pytest.mark.slow
@pytest.mark.parametrize("tens", range(7, 22))
def test_more_drawn_environments(tens):
    for seed in range(10 * tens, 10 * tens + 10):
        check_one(seed)


def test_every_fault_is_drawn():
    assert {drawn(seed)[1].fault for seed in range(64)} == {None, *FAULTS}


def test_only_steps_are_taken_of_an_environment_that_has_nothing_else():
    family = dataclasses.replace(counting(), env=Resetting(counting().env.env))
    _, (data, _) = acted(family, CounterParams(terminate_at=99, truncate_at=2), 5)
    assert data.last.tolist() == [False, True, False, True, False]
    assert data.timestep.obs[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert data.next_obs[:, 0].tolist() == [1, 2, 1, 2, 1]


def test_an_environment_that_changes_is_found_out():
    """What it hands over is remembered; a cast to what it was would be without a word."""
    family = counting()
    task = CounterParams(number=7.0, terminate_at=99)
    acted(family, task, 1)
    changes = {
        "the state has the structure": lambda s: {"time": s.time},
        "the state has a leaf that is float32": lambda s: s.replace(time=s.time + 0.5),
        "the state has a leaf that is int32 of shape (2,)": lambda s: s.replace(
            time=jnp.zeros(2, int)
        ),
    }
    for message, change in changes.items():
        type(family.env.env).reset_env = lambda self, key, params, change=change: (
            jnp.zeros(2),
            change(Counter.reset_env(self, key, params)[1]),
        )
        with pytest.raises(InvalidEnvironment) as error:
            acted(family, task, 1)
        assert message in str(error.value)
        assert "it must not change" in str(error.value)


def test_one_task_is_acted_in_and_not_several():
    several = jax.tree.map(lambda x: jnp.stack([x, x]), CounterParams())
    with pytest.raises(InvalidEnvironment, match=r"task.number has shape \(2,\); it must be like"):
        acted(counting(), several, 1)
