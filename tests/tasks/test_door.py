"""What comes through the door is right, or an error that names it before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import boxes, tasks
from jaxmeta.rollout import begin_stream, rollout
from jaxmeta.tasks import InvalidEnvironment
from jaxmeta.types import Learner
from tests.tasks.generated import FAULTS, drawn


def acted(family, task, num_steps, key=0):
    """A stream of random actions, wider than the space where that is a Box, and the state after every step."""

    def act(key, meta, agent, memory, timestep):
        action = family.random_action(key)
        if jnp.issubdtype(action.dtype, jnp.floating):
            action = 3.0 * action
        return action, jnp.zeros(()), memory

    learner = Learner(
        init=lambda key, meta: (), memory=lambda meta: (), act=act, update=lambda *args: ()
    )
    world = dict(learner=learner, env=family.env)

    @jax.jit
    def run(key):
        begin_key, key = jax.random.split(key)
        stream = begin_stream(begin_key, None, task, **world)

        def step(stream, key):
            stream, data = rollout(key, None, task, (), stream, **world, num_steps=1)
            return stream, (jax.tree.map(lambda x: x[0], data), stream.env_state)

        return stream, jax.lax.scan(step, stream, jax.random.split(key, num_steps))[1]

    return run(jax.random.key(key))


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


@pytest.mark.parametrize("seed", range(40))
def test_drawn_environments(seed):
    """Every other has a planted fault. The others are, state by state, a plain loop over gymnax's own step."""
    check_one(seed)


@pytest.mark.slow
@pytest.mark.parametrize("tens", range(4, 32))
def test_more_drawn_environments(tens):
    for seed in range(10 * tens, 10 * tens + 10):
        check_one(seed)


def test_every_fault_is_drawn():
    assert {drawn(seed)[1].fault for seed in range(320)} == {None, *FAULTS}
