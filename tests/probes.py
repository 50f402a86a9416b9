"""Environments and learners so small that the right answer is known."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import rollouts, tasks
from jaxmeta.tasks.transform import Wrapper
from jaxmeta.types import Learner, TimeStep, Trajectory


def thorough(values, quick):
    """``values`` for ``parametrize``: those in ``quick`` in every run, the others, of the same kind, in the slow one."""
    return [x if x in quick else pytest.param(x, marks=pytest.mark.slow) for x in values]


QUICK_FAMILIES = (
    *("bernoulli_bandit", "cartpole", "catch", "dark_key_to_door", "dark_room", "gridnavi"),
    *("latent_tabular", "maze", "navigation", "tabular", "translation"),
)
"""Families that compile and run quickly, of every kind: bandits, grids, MDPs, control, language."""
LIKE_OTHERS = {
    *("acrobot", "freeway", "gaussian_bandit", "mountain_car", "seaquest", "space_invaders"),
    "half_circle",
    "sparse_navigation",
}
"""Families that are made as others are: of control, of bandits, of MinAtar, of navigation."""
EVERY_FAMILY = thorough([x for x in tasks.names() if x not in LIKE_OTHERS], QUICK_FAMILIES)
"""Names of families of every kind, for tests that compile an episode of each."""
ALL_FAMILIES = thorough(tasks.names(), QUICK_FAMILIES)
"""The names of all families."""


def made(name, **settings):
    """The family called ``name``; the test is skipped where the package that it needs is not installed."""
    try:
        return tasks.make(name, **settings)
    except ImportError as error:
        pytest.skip(str(error))


CONTINUOUS = ("pearl", "recurrent_sac")
"""Algorithms that take bounded continuous actions alone."""


def taken_by(name, family):
    """``family``, or a small one with continuous actions for an algorithm that takes no other; the test is skipped where the
    package that the algorithm needs is not installed."""
    if name == "recurrent_sac":
        pytest.importorskip("flashbax")
    return tasks.make("half_circle", horizon=2) if name in CONTINUOUS else family


@struct.dataclass
class CounterParams:
    """The task: its number, and when an episode terminates and is truncated."""

    number: Any = 7.0
    terminate_at: Any = 4
    truncate_at: Any = 1000


@struct.dataclass
class CounterState:
    time: Any


class Counter(environment.Environment):
    """Observes (steps taken in the episode, the task's number); the reward is the action plus that number."""

    @property
    def default_params(self):
        return CounterParams()

    def reset_env(self, key, params):
        return self._observe(0, params), CounterState(time=0)

    def step_env(self, key, state, action, params):
        state = CounterState(time=state.time + 1)
        reward = action + params.number
        terminated = state.time == params.terminate_at
        return self._observe(state.time, params), state, reward, terminated, {}

    def is_truncated(self, state, params):
        return state.time >= params.truncate_at

    def _observe(self, time, params):
        return jnp.stack([jnp.asarray(time, float), jnp.asarray(params.number, float)])

    def action_space(self, params=None):
        return spaces.Discrete(3)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Paid(Wrapper):
    """Rewards in another unit."""

    unit: Any

    def earn(self, reward, params):
        return self.unit * reward


def learned_in_units(make, family, num_tasks):
    """``unit -> (state, reports)``: three meta-updates of ``make(family)`` where the family pays in that unit."""

    @jax.jit
    def learned(unit):
        paid = dataclasses.replace(family, env=Paid(family.env, unit))
        algorithm = make(paid)

        def update(state, keys):
            drawn = tasks.sample_tasks(keys[0], paid, num_tasks, split="train")
            return algorithm.step(keys[1], state, drawn)

        keys = jax.random.split(jax.random.key(1), (3, 2))
        return jax.lax.scan(update, algorithm.init(jax.random.key(0)), keys)

    return learned


FAIL_AT_ONCE = """
import os, sys, traceback
sys.excepthook = lambda *error: (traceback.print_exception(*error), os._exit(1))
"""
"""For a script that is one of several processes: else who fails waits for the others before it ends."""


def exit_codes(processes, seconds=300):
    """Of processes that wait for each other: once all have ended, or one has failed; then none is left."""
    end = time.monotonic() + seconds
    try:
        while None in (codes := [process.poll() for process in processes]):
            if any(codes) or time.monotonic() > end:
                break
            time.sleep(0.05)
        return codes
    finally:
        for process in processes:
            process.kill()


def constant_learner(action: int = 1) -> Learner:
    """Always the same action; its memory counts the steps it was asked, its agent counts updates."""

    def act(key, meta, agent, memory, timestep):
        return jnp.asarray(action, jnp.int32), jnp.asarray(-0.5), memory + 1

    return Learner(
        init=lambda key, meta: jnp.zeros(()),
        memory=lambda meta: jnp.zeros((), jnp.int32),
        act=act,
        update=lambda key, meta, agent, trajectories: agent + 1.0,
    )


def random_learner() -> Learner:
    """Uniform over the three actions; each update adds a meta-scaled function of the rewards and a key."""

    def act(key, meta, agent, memory, timestep):
        return jax.random.randint(key, (), 0, 3), jnp.log(1 / 3), memory

    def update(key, meta, agent, trajectories):
        return agent * meta + trajectories.reward.mean() + jax.random.uniform(key)

    return Learner(
        init=lambda key, meta: meta * jnp.ones(()), memory=lambda meta: (), act=act, update=update
    )


def paths_as_data(states, actions, reward, log_policy) -> Trajectory:
    """Enumerated paths ``[P, H]`` of a tabular MDP as what a rollout would have recorded, ``[P, H]``.

    ``log_policy [S, A]`` is that of the policy that acted; a path ends with its time limit.
    """
    num_states = reward.shape[0]
    first = jnp.zeros(states.shape, bool).at[:, 0].set(True)
    obs = jax.nn.one_hot(states, num_states, dtype=reward.dtype)
    earned = reward[states, actions]
    before = jnp.roll(earned, 1, axis=1).at[:, 0].set(0.0)
    timestep = TimeStep(obs, jnp.roll(actions, 1, axis=1).at[:, 0].set(0), before, first)
    return Trajectory(
        timestep=timestep,
        action=actions,
        log_prob=log_policy[states, actions],
        reward=earned,
        discount=jnp.ones(states.shape),
        last=jnp.roll(first, -1, axis=1),
        next_obs=jnp.roll(obs, -1, axis=1),
        memory=(),
    )


def recorded_lifetime(algorithm, family, meta, *, num_streams, num_updates):
    """What an agent sees in one task of ``family``, episodes from the start, as data: ``[K + 1, N, T]``."""
    setup = rollouts.Setup(algorithm.learner, family.env, num_streams, family.horizon)

    @jax.jit
    def lived(meta):
        task = family.train(jax.random.key(2))
        return rollouts.lifetime(
            jax.random.key(1), meta, task, setup=setup, num_updates=num_updates, restart=True
        ).trajectories

    return lived(meta)


def made_up_streams(num_streams: int = 4, num_steps: int = 6) -> Trajectory:
    """Streams ``[N, T]`` of two actions and three observed numbers: episodes that end early, terminate and are cut."""
    draw, shape = np.random.default_rng(0), (num_streams, num_steps)
    last = draw.random(shape) < 0.25
    first = np.roll(last, 1, axis=1)
    first[:, 0] = True
    obs, next_obs = draw.normal(size=(2, *shape, 3))
    action, previous = draw.integers(0, 2, (2, *shape))
    reward, before = draw.normal(size=(2, *shape))
    data = Trajectory(
        timestep=TimeStep(obs, previous, before, first),
        action=action,
        log_prob=np.log(draw.uniform(0.3, 0.7, shape)),
        reward=reward,
        discount=1.0 - (last & (draw.random(shape) < 0.5)),
        last=last,
        next_obs=next_obs,
        memory=(),
    )
    return jax.tree.map(jnp.asarray, data)


def broken(data: Trajectory, stream: int, where: str, value: float) -> Trajectory:
    """``data [N, T]`` with one number of one stream replaced: its reward, observation or last successor."""
    if where == "reward":
        return data._replace(reward=data.reward.at[stream, 2].set(value))
    if where == "successor":
        return data._replace(next_obs=data.next_obs.at[stream, -1].set(value))
    obs = data.timestep.obs.at[stream, 1].set(value)
    return data._replace(timestep=data.timestep._replace(obs=obs))


def without(data: Trajectory, stream: int) -> Trajectory:
    """``data [N, T]`` without one of its streams."""
    return jax.tree.map(lambda x: jnp.delete(x, stream, axis=0), data)
