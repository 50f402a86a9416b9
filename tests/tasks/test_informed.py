import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.rollout import begin_stream, rollout
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.informed import Informed, informed
from tests.probes import Counter, CounterParams, constant_learner

# Leaves of every kind: a vector, many scalars, integers.
SETTINGS = {
    "navigation": dict(horizon=5),
    "cartpole": dict(horizon=5),
    "gridnavi": dict(size=3, horizon=4),
    "t_maze": dict(length=2),
}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_task_follows_the_observation_and_nothing_else_changes(name):
    """Step by step beside the family within, over several episodes and tasks at once."""
    family = tasks.make(name, **SETTINGS[name])
    told = informed(family)
    drawn = tasks.sample_tasks(jax.random.key(0), told, 3, split="train")
    same = tasks.sample_tasks(jax.random.key(0), family, 3, split="train")
    assert all(jnp.array_equal(*x) for x in zip(*map(jax.tree.leaves, (drawn, same)), strict=True))

    action = jnp.ones(family.action_space.shape, family.action_space.dtype)

    def seen(family):
        def one(task):
            learner = constant_learner()._replace(
                act=lambda key, meta, agent, memory, timestep: (action, jnp.zeros(()), memory + 1)
            )
            stream = begin_stream(jax.random.key(1), None, task, learner=learner, env=family.env)
            return rollout(
                jax.random.key(2),
                None,
                task,
                (),
                stream,
                learner=learner,
                env=family.env,
                num_steps=9,
            )[1]

        return jax.jit(jax.vmap(one))(drawn)

    plain, data = seen(family), seen(told)
    assert data.last.any()
    size = np.prod(family.observation_shape)
    for m in range(3):
        task = flat(jax.tree.map(lambda x, m=m: x[m], drawn))
        for got, within in (
            (data.timestep.obs, plain.timestep.obs),
            (data.next_obs, plain.next_obs),
        ):
            assert got[m].shape == (9, *told.observation_shape) == (9, size + len(task))
            np.testing.assert_array_equal(got[m, :, :size], within[m].reshape(9, -1))
            np.testing.assert_array_equal(got[m, :, size:], np.tile(task, (9, 1)))
    for field in ("reward", "discount", "last", "action"):
        np.testing.assert_array_equal(getattr(data, field), getattr(plain, field))


def test_leaves_are_told_in_the_order_of_the_tree_whatever_their_type():
    env = Informed(Counter())
    task = CounterParams(number=2.5, terminate_at=4, truncate_at=jnp.array([[6, 7]]))
    obs, state = env.reset_env(jax.random.key(0), task)
    assert obs.tolist() == [0, 2.5, 2.5, 4, 6, 7]
    assert obs.dtype == jnp.float32
    obs, state, *_ = env.step_env(jax.random.key(0), state, 1, task)
    assert obs.tolist() == [1, 2.5, 2.5, 4, 6, 7]
    assert state.time == 1
    assert env.observation_space(None).shape == (2 + 3,)  # that of the default task
    assert env.action_space().n == 3
    assert env.default_params == CounterParams()
    assert env.name == "InformedCounter"


def test_a_scalar_observation_is_flattened():
    class Scalar(Counter):
        def _observe(self, time, params):
            return jnp.asarray(time)

        def observation_space(self, params):
            return type(super().observation_space(params))(0, 9, (), jnp.int32)

    env = Informed(Scalar())
    assert env.reset_env(jax.random.key(0), CounterParams())[0].tolist() == [0, 7, 4, 1000]
    assert env.observation_space(CounterParams()).shape == (4,)

    def controller(task, obs):
        assert obs.shape == ()
        return obs + 1

    sample = lambda key: CounterParams()  # noqa: E731
    family = TaskFamily("scalar", Scalar(), 4, sample, sample, sample, optimal_action=controller)
    assert informed(family).optimal_action(CounterParams(), jnp.array([1.0, 7.0, 4.0, 9.0])) == 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [("navigation", "optimal"), ("gridnavi", "optimal"), ("cartpole", "expert")],
)
def test_controllers_see_the_observation_within(name, kind):
    family = tasks.make(name)
    told = informed(family)
    task = family.test(jax.random.key(0))
    _, state = family.env.reset_env(jax.random.key(1), task)
    controller, within = (getattr(f, f"{kind}_action") for f in (told, family))
    for key in jax.random.split(jax.random.key(2), 5):
        action = family.random_action(key)
        obs = family.env.step_env(key, state, action, task)[0]
        longer, state, *_ = told.env.step_env(key, state, action, task)
        np.testing.assert_array_equal(controller(task, longer), within(task, obs))
    other = {"optimal": "expert", "expert": "optimal"}[kind]
    assert getattr(told, f"{other}_action") is None


def test_optimal_actions_earn_as_much_as_uninformed():
    family = tasks.make("navigation", horizon=5)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 2, split="test")
    expected = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    earned = evaluation.optimal_returns(jax.random.key(1), drawn, family=informed(family))
    np.testing.assert_array_equal(earned, expected)


def test_what_is_not_told_is_the_family_s():
    family = tasks.make("tabular")
    told = informed(family)
    assert told.name == "informed_tabular"
    assert told.horizon == family.horizon
    assert told.optimal_return is family.optimal_return
    assert told.optimal_action is told.expert_action is None
    for split in tasks.SPLITS:
        assert getattr(told, split) is getattr(family, split)
    assert "informed" not in tasks.names()


def test_informing_twice_tells_the_task_twice():
    told = informed(informed(tasks.make("t_maze", length=2)))
    assert told.observation_shape == (3 + 1 + 1,)
    task = told.env.default_params.replace(side=jnp.array(1))
    assert told.env.reset_env(jax.random.key(0), task)[0].tolist() == [0, 1, 0, 1, 1]
    assert told.optimal_action(task, jnp.zeros(5)) == 1


def test_everything_is_float64_where_float_is(x64):
    told = informed(tasks.make("gridnavi", size=3))
    obs, state = told.env.reset_env(jax.random.key(0), told.train(jax.random.key(1)))
    assert obs.dtype == jnp.float64
    assert state.position.dtype == jnp.int32


def test_equal_environments_within_make_equal_ones():
    small, large = (tasks.make("gridnavi", size=size) for size in (3, 4))
    assert informed(small).env == informed(tasks.make("gridnavi", size=3)).env
    assert hash(informed(small).env) == hash(informed(tasks.make("gridnavi", size=3)).env)
    assert informed(small).env != informed(large).env
    assert informed(small).env != small.env
