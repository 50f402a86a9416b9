"""What comes through the door is right, or an error that names it before anything compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import evaluation, tasks
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import InvalidEnvironment, TaskFamily, boxes, door, transform
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams
from tests.tasks.generated import FAULTS, Resetting, drawn


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


def told(**changes):
    """A family of three steps around a `Counter` with some of its methods replaced."""
    env = type("Changed", (Counter,), changes)()
    return TaskFamily("own", env, 3, *[lambda key: CounterParams(number=7.0)] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"is_truncated": lambda self, state, params: False}
            | {"reset_env": lambda self, key, params: (jnp.zeros(2), {"x": 0, "y": jnp.zeros(2)})}
            | {
                "step_env": lambda self, key, s, a, p: (
                    jnp.zeros(2),
                    {"x": 0.5, "y": s["y"]},
                    0.0,
                    False,
                    {},
                )
            },
            "state['x'] of Changed is int32 after reset_env and float32 after step_env; it must be of one kind "
            "from the start: let reset_env write float32",
        ),
        (
            {"observation_space": lambda self, params: spaces.Box(0.0, 1.0, (5,))},
            "Changed.reset_env's observation has shape (2,); the observation space's is (5,)",
        ),
        (
            {"is_truncated": lambda self, state, params: jnp.zeros(2, bool)},
            "Changed.is_truncated is bool of shape (2,); it must be one boolean, of shape ()",
        ),
        (
            {"step_env": lambda self, key, state, action, params: 1 / 0},
            "Changed.step_env raised ZeroDivisionError: division by zero",
        ),
        (
            {"action_space": lambda self, params=None: spaces.Tuple((spaces.Discrete(2),))},
            "it must be one Discrete or one Box: let the environment flatten its parts",
        ),
        ({"reset_env": None}, "Changed has no method reset_env, as gymnax's environments have"),
    ],
)
def test_errors_name_the_leaf_and_what_would_be_right(changes, message):
    with pytest.raises(InvalidEnvironment) as error:
        tasks.check_promises(told(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize("own_limit", [2, 3, 1000])
def test_the_horizon_is_the_one_time_limit(own_limit):
    """An environment may end sooner, and never later."""
    family = told()
    task = CounterParams(number=7.0, terminate_at=99, truncate_at=own_limit)
    _, (data, states) = acted(family, task, 7)
    length = min(own_limit, 3)
    assert data.last.tolist() == [t % length == length - 1 for t in range(7)]
    assert data.discount.tolist() == [1] * 7
    assert states.time.tolist() == [(t + 1) % length for t in range(7)]


def test_a_promise_spares_the_counter_and_is_not_inherited_past_is_truncated():
    class Promises(Counter):
        ends_by = 3

        def is_truncated(self, state, params):
            return state.time >= 3

    class Breaks(Promises):
        def step_env(self, key, state, action, params):
            return super().step_env(key, state.replace(time=0), action, params)

    assert isinstance(door.limited(Promises(), 3), Promises)
    for env, horizon in ((Promises(), 2), (Breaks(), 3), (Counter(), 3)):
        assert door.limited(env, horizon) == door.TimeLimit(env, horizon)
    assert door.limited(door.TimeLimit(env, 5), 4) == door.TimeLimit(env, 4)
    family = dataclasses.replace(told(), env=Promises())
    assert family.env.__class__ is Promises
    assert dataclasses.replace(family, horizon=2).env.horizon == 2


def test_states_have_the_wider_of_two_widths_from_the_start():
    def step_env(self, key, state, action, params):
        return jnp.zeros(2), {"x": jnp.float32(0.1) + state["x"]}, 0.0, False, {}

    family = told(
        reset_env=lambda self, key, params: (jnp.zeros(2), {"x": jnp.zeros((), jnp.float16)}),
        step_env=step_env,
        is_truncated=lambda self, state, params: False,
    )
    _, (_, states) = acted(family, CounterParams(number=7.0), 2)
    np.testing.assert_array_equal(states.inner["x"], np.float32([0.1, 0.2]))


def test_a_key_of_its_own_may_take_the_place_of_the_one_it_is_handed():
    def step_env(self, key, state, action, params):
        key = jnp.where(state["t"] % 2 == 0, jax.random.key(5), key)
        return jnp.zeros(2), {"t": state["t"] + 1, "key": key}, jax.random.uniform(key), False, {}

    family = told(
        reset_env=lambda self, key, params: (jnp.zeros(2), {"t": 0, "key": key}),
        step_env=step_env,
        is_truncated=lambda self, state, params: False,
    )
    _, (data, _) = acted(family, CounterParams(number=7.0), 6)
    own = jax.random.uniform(jax.random.key(5))
    assert (data.reward == own).tolist() == [True, False, True] * 2


@pytest.mark.parametrize(
    ("tasks_of", "message"),
    [
        (lambda t: t, "tasks.number has shape (); it must be like [M]"),
        (lambda t: jax.tree.map(lambda x: jnp.zeros((3, 2)), t), "tasks.number has shape (3, 2)"),
        (
            lambda t: CounterParams(jnp.zeros(3), jnp.zeros(3), jnp.zeros(2)),
            "tasks.truncate_at has shape (2,); other leaves hold 3",
        ),
        (lambda t: {"number": jnp.zeros(3)}, "tasks has the structure"),
        (lambda t: jax.tree.map(lambda x: jnp.zeros(0), t), "tasks holds nothing"),
    ],
)
def test_tasks_have_one_leading_axis_in_every_leaf(tasks_of, message):
    with pytest.raises(ValueError, match="tasks") as error:
        door.num_tasks("tasks", tasks_of(CounterParams()), Counter())
    assert message in str(error.value)


def test_only_steps_are_taken_of_an_environment_that_has_nothing_else():
    family = dataclasses.replace(told(), env=Resetting(told().env.env))
    _, (data, _) = acted(family, CounterParams(terminate_at=99, truncate_at=2), 5)
    assert data.last.tolist() == [False, True, False, True, False]
    assert data.timestep.obs[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert data.next_obs[:, 0].tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (jnp.zeros(2), "the learner's action is float32 of shape (2,)"),
        (jnp.zeros(()), "the learner's action is float32 of shape ()"),
    ],
)
def test_actions_are_of_the_space(action, message):
    learner = Learner(lambda *x: (), lambda *x: (), lambda *x: (action, 0.0, ()), lambda *x: ())
    env, task = Counter(), CounterParams()
    stream = begin_stream(jax.random.key(0), None, task, learner=learner, env=env)
    with pytest.raises(InvalidEnvironment) as error:
        rollout(jax.random.key(0), None, task, (), stream, learner=learner, env=env, num_steps=1)
    assert message in str(error.value)


def test_an_environment_that_changes_is_found_out():
    """What it hands over is remembered; a cast to what it was would be without a word."""
    family = told()
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
        acted(told(), several, 1)


def test_a_limit_is_put_within_what_is_around_an_environment():
    """So that what is owed at an episode's end is paid there."""
    family = transform.delayed_rewards(tasks.make("navigation", horizon=6), max_delay=3)
    shorter = dataclasses.replace(family, horizon=4)
    assert isinstance(shorter.env, type(family.env))
    assert isinstance(shorter.env.env, door.TimeLimit)
    task = family.train(jax.random.key(0))
    returns = [
        evaluation.optimal_returns(
            jax.random.key(1),
            jax.tree.map(lambda x: x[None], t),
            family=dataclasses.replace(
                f, optimal_return=None, optimal_action=lambda task, obs: jnp.full(2, 0.05)
            ),
        )
        for f, t in (
            (shorter, task),
            (tasks.make("navigation", horizon=4), task.inner),
        )
    ]
    np.testing.assert_allclose(*returns, rtol=1e-6)
