"""Two functions are a family like any other; so is a list of tasks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import evaluation, networks, rollouts, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.networks.recurrent import gru
from jaxmeta.tasks import InvalidEnvironment, transform
from tests.probes import constant_learner

SPACE = spaces.Dict({"where": spaces.Box(-9, 9, (2,)), "time": spaces.Discrete(5)})


def look(x, t):
    return {"where": x, "time": t}


def reset(key, task):
    x, t = jnp.zeros(2), jnp.zeros((), jnp.int32)
    return look(x, t), (x, t)


def step(key, state, action, task):
    x, t = state[0] + action - 1, state[1] + 1
    reward = -jnp.sum(jnp.abs(x - task["goal"]))
    return look(x, t), (x, t), reward, jnp.all(x == task["goal"])


def draw(key):
    return {"goal": jax.random.randint(key, (2,), -2, 3).astype(float)}


PARTS = dict(
    reset=reset,
    step=step,
    observation_space=SPACE,
    action_space=tasks.MultiDiscrete((3, 3)),
    horizon=4,
    train=draw,
)


@pytest.fixture(scope="module")
def family():
    return tasks.from_functions(**PARTS)


def test_observations_are_flat_and_actions_several(family):
    assert family.observation_shape == (7,)  # time one-hot, then where
    learner = constant_learner()._replace(
        act=lambda key, meta, agent, memory, timestep: (
            jnp.array([2, 0], jnp.int32),
            jnp.zeros(()),
            memory,
        )
    )
    setup = rollouts.Setup(learner, family.env, num_streams=1, num_steps=4)
    task = {"goal": jnp.array([2.0, -2.0])}
    key = jax.random.key(0)
    data = jax.tree.map(lambda x: x[0], rollouts.sample(key, None, task, None, setup=setup))
    np.testing.assert_array_equal(data.timestep.obs[1], [0, 1, 0, 0, 0, 1, -1])
    np.testing.assert_array_equal(data.reward, [-2, 0, -2, 0])
    np.testing.assert_array_equal(data.last, [False, True, False, True])
    np.testing.assert_array_equal(data.discount, [1, 0, 1, 0])


def test_it_is_checked_and_transformed_like_any_other(family, capsys):
    found = tasks.check(family, num_tasks=8)
    assert found.problems == ()
    assert capsys.readouterr().out == ""
    assert "random actions" in str(found)
    assert "MultiDiscrete((3, 3))" in str(found)
    assert "steps a second" in str(found)
    seen = transform.hidden(family, range(5))
    assert seen.observation_shape == (2,)
    assert transform.hidden(family, ["where"]).observation_shape == (5,)
    assert transform.hidden(family, ["time"]).env.kept == (5, 6)
    with pytest.raises(ValueError, match="part='tim' is unknown: did you mean 'time'"):
        transform.hidden(family, ["tim"])
    with pytest.raises(ValueError, match="has a state of type tuple; a flax dataclass"):
        transform.pinned(family, "inner")
    late = transform.sticky_actions(family)
    tasks.check_promises(late)
    assert transform.permuted_observations(family).observation_shape == (7,)
    told = tasks.informed.informed(family)
    assert told.observation_shape == (9,)
    tasks.check_promises(told)


class Net(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.tanh(nn.Dense(3)(jnp.concatenate([obs["where"], obs["time"]])))


def test_a_learner_with_an_encoder_learns_once_on_it(family):
    network = networks.recurrent_actor_critic(family, gru(4), encoder=Net())
    algorithm = rl2(family, Config(num_minibatches=1, num_epochs=1), network=network)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    assert int(metrics["skipped_updates"]) == 0
    changed = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), state.meta.params, after.meta.params)
    assert jax.tree.reduce(lambda x, y: x | y, changed["observation"])
    np.testing.assert_allclose(float(metrics["entropy"]), 2 * np.log(3), rtol=1e-3)


def test_random_actions_cover_all_choices(family):
    drawn = jax.vmap(family.random_action)(jax.random.split(jax.random.key(0), 200))
    assert {tuple(x) for x in np.asarray(drawn)} == {(i, j) for i in range(3) for j in range(3)}


def test_splits_default_to_those_before_them():
    far = lambda key: {"goal": jnp.full(2, 9.0)}  # noqa: E731
    family = tasks.from_functions(**PARTS, out_of_distribution=far)
    assert family.test is draw
    assert family.out_of_distribution is far
    assert tasks.from_functions(**PARTS, test=far).out_of_distribution is far


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(reset=3), TypeError, "reset=3 must be a function"),
        (dict(train=None), TypeError, "train=None must be a function"),
        (dict(horizon=0), ValueError, "horizon=0 must be at least 1"),
        (dict(action_space=3), TypeError, "action_space=3 must be a space"),
        (dict(action_space=SPACE), InvalidEnvironment, "it must be one Discrete or one Box"),
        (dict(best_action=draw), ValueError, "did you mean"),
        (dict(observation_space=spaces.Box(1.0, 0.0, (2,))), InvalidEnvironment, "low <= high"),
    ],
)
def test_arguments(change, error, message):
    with pytest.raises(error, match=message):
        tasks.from_functions(**(PARTS | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(reset=lambda key, task: jnp.zeros(2)), "it must return two: obs, state"),
        (dict(step=lambda *x: step(*x)[:3]), "step returned 3 values; it must return four"),
        (
            dict(reset=lambda *x: (jnp.zeros(2), reset(*x)[1])),
            "it must be a dictionary of time, where",
        ),
        (dict(step=lambda *x: (*step(*x)[:3], 0.0)), "it must be one boolean"),
        (
            dict(step=lambda k, s, a, t: (step(k, s, a, t)[0], (s[0], s[1] + 0.5), 0.0, False)),
            "it must be of one kind",
        ),
    ],
)
def test_what_the_functions_return_is_checked_before_compiling(change, message):
    with pytest.raises(InvalidEnvironment, match=message):
        tasks.check_promises(tasks.from_functions(**(PARTS | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(reset=lambda task, key: (jnp.zeros(2), jnp.zeros(2))),
            r"reset takes \(task, key\); it must take \(key, task\)",
        ),
        (
            dict(step=lambda state, action, task, rng: (state, state, 0.0, False)),
            r"step takes \(state, action, task, rng\); it must take \(key, state, action, task\)",
        ),
        (dict(train=lambda size, key: size), r"train takes \(size, key\); it must take \(key\)"),
    ],
)
def test_a_key_in_another_place_is_said(change, message):
    parts = dict(
        reset=lambda rng, key: (jnp.zeros(2), jnp.zeros(2)),  # of a task that is a key to a door
        step=lambda key, state, action, task: (state, state, 0.0, False),
        observation_space=spaces.Box(-1.0, 1.0, (2,)),
        action_space=spaces.Box(-1.0, 1.0, (2,)),
        horizon=2,
        train=lambda key: jnp.zeros(2),
    )
    tasks.from_functions(**parts)
    with pytest.raises(TypeError, match=message):
        tasks.from_functions(**parts | change)


def test_a_list_of_tasks(family):
    many = {"goal": jnp.array([[0.0, 1.0], [2.0, 2.0]])}
    listed = tasks.from_list(family, many, test={"goal": jnp.ones((1, 2))})
    drawn = tasks.sample_tasks(jax.random.key(0), listed, 50, split="train")
    counts = np.bincount(np.asarray(drawn["goal"][:, 0] == 2))
    assert len(counts) == 2
    assert counts.min() > 10
    assert jnp.all(listed.test(jax.random.key(1))["goal"] == 1)
    assert listed.out_of_distribution is family.out_of_distribution
    assert listed.name == "from_functions_of_2"
    returns = evaluation.random_returns(jax.random.key(0), drawn, family=listed, num_streams=1)
    assert returns.shape == (50,)
    for wrong, message in (
        ({"goal": jnp.zeros(2)}, "train"),
        ({"place": jnp.zeros((3, 2))}, "train"),
        (jnp.zeros((3, 2)), "train"),
        (
            {"goal": jnp.zeros((3, 3))},
            r"train\['goal'\] is float32 of shape \(3, 3\); a task of the",
        ),
        ({"goal": jnp.zeros((3, 2), int)}, r"train\['goal'\] holds int32"),
        ({"goal": jnp.full((3, 2), jnp.nan)}, "has a NaN"),
        ([{"goal": jnp.zeros(2)}] * 3, "train is a list of 3; it must be one pytree"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.from_list(family, wrong)
