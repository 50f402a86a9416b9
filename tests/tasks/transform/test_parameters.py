"""Parameters drawn per task, and leaves of the state made part of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import transform
from jaxmeta.tasks.transform.wrappers import innermost, replaced
from tests.tasks.transform.shared import KEY, SWITCHES


@pytest.mark.parametrize("law", ["log_uniform", "uniform"])
def test_parameters_are_drawn_where_the_split_says(law):
    ranges = {"g": (5.0, 20.0), "m": (0.5, 2.0)}
    family = transform.drawn_parameters(
        transform.permuted_observations(transform.from_gymnax("Pendulum-v1", horizon=5)),
        ranges,
        law=law,
    )
    measure = np.log if law == "log_uniform" else np.asarray
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 2000, split=split).inner
        assert np.all(np.asarray(drawn.l) == 1.0)
        shares = []
        for field, ends in ranges.items():
            low, high = measure(np.array(ends))
            share = (measure(np.asarray(getattr(drawn, field))) - low) / (high - low)
            shares.append(share)
            if split == "out_of_distribution":
                outside = np.maximum(-share, share - 1)
                assert outside.min() >= -1e-5
                np.testing.assert_allclose(outside.max(), 0.25, atol=0.01)
                np.testing.assert_allclose(np.mean(share < 0), 0.5, atol=0.05)
            else:
                np.testing.assert_allclose([share.min(), share.max()], [0, 1], atol=0.01)
                np.testing.assert_allclose(share.mean(), 0.5, atol=0.03)
        assert abs(np.corrcoef(shares)[0, 1]) < 0.08  # each on its own


def test_no_parameter_changes_its_sign_out_of_distribution():
    pendulum = transform.from_gymnax("Pendulum-v1", horizon=5)
    ranges = {"g": (0.0, 8.0), "m": (0.1, 8.0), "l": (-8.0, -0.1), "dt": (-4.0, 4.0)}
    family = transform.drawn_parameters(pendulum, ranges, law="uniform")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 500, split="out_of_distribution")
    assert np.min(drawn.g) >= 8.0
    assert 0 <= np.min(drawn.m) < 0.1
    assert 0 >= np.max(drawn.l) > -0.1
    assert np.min(drawn.dt) < -4 < 4 < np.max(drawn.dt)


def test_integers_stay_integers():
    family = transform.drawn_parameters(
        transform.from_gymnax("Asterix-MinAtar", horizon=5),
        {"init_spawn_speed": (2, 9), "shot_cool_down": (0, 4)},
    )
    found = {}
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 300, split=split)
        assert drawn.init_spawn_speed.dtype == jnp.int32
        found[split] = [
            set(np.asarray(x).tolist()) for x in (drawn.init_spawn_speed, drawn.shot_cool_down)
        ]
    assert found["train"] == found["test"] == [set(range(2, 10)), set(range(5))]
    assert found["out_of_distribution"] == [{1, 10, 11}, {-1, 5}]


def test_parameters_drawn_change_the_dynamics_and_are_told_to_controllers():
    family = transform.drawn_parameters(tasks.make("cartpole"), {"gravity": (5.0, 15.0)})
    assert family.name == "drawn_parameters_cartpole"
    task = family.train(jax.random.key(0))
    other = task.replace(gravity=task.gravity * 2)
    state = replaced(family.env.reset_env(KEY, task)[1], {"theta": jnp.array(0.1)})
    assert family.optimal_action is None
    first, second = (family.env.step_env(KEY, state, jnp.array(0), t)[0] for t in (task, other))
    assert not np.array_equal(first, second)
    assert family.expert_action(task, jnp.ones(4)) == 1


@pytest.mark.parametrize("name", sorted(transform.IDENTITY))
def test_what_is_pinned_survives_every_reset(name):
    family = transform.from_gymnax(name, horizon=4)
    if name in SWITCHES:
        family = transform.with_parameters(family, **SWITCHES[name])
    leaves = transform.IDENTITY[name]
    family = transform.pinned(family, *leaves)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 12, split="train")

    def resets(task, key):
        obs, state = family.env.reset_env(key, task)
        observed = family.env.env.observe(jax.random.split(key)[1], state, None, task.inner)
        return obs, observed, {leaf: getattr(innermost(state), leaf) for leaf in leaves}

    keys = jax.random.split(jax.random.key(1), 3)
    obs, observed, state = jax.jit(
        jax.vmap(lambda task: jax.vmap(functools.partial(resets, task))(keys))
    )(drawn)
    np.testing.assert_array_equal(obs, observed)
    for leaf in leaves:
        pin = np.asarray(drawn.drawn[leaf])
        np.testing.assert_array_equal(state[leaf], np.stack([pin] * 3, axis=1))
    assert any(not np.all(x == x[:1]) for x in map(np.asarray, drawn.drawn.values()))


def test_pins_come_from_where_they_are_said_to():
    inner = transform.from_gymnax("Reacher-misc", horizon=3)
    family = transform.pinned(
        transform.sticky_actions(inner),
        "goal_xy",
        inside=lambda key: {"goal_xy": jax.random.uniform(key, (2,))},
        outside=lambda key: {"goal_xy": 1 + jax.random.uniform(key, (2,))},
    )
    for split in tasks.SPLITS:
        goal = tasks.sample_tasks(KEY, family, 50, split=split).drawn["goal_xy"]
        assert np.all((np.asarray(goal) > 1) == (split == "out_of_distribution"))
    task = family.train(KEY)
    obs, state = family.env.reset_env(KEY, task)
    np.testing.assert_array_equal(innermost(state).goal_xy, task.drawn["goal_xy"])
    np.testing.assert_array_equal(obs[-2:], task.drawn["goal_xy"])


def test_without_a_law_of_their_own_pins_are_the_reset_s():
    family = transform.pinned(transform.from_gymnax("GaussianBandit-misc", horizon=3), "mu")
    for split in tasks.SPLITS:
        mu = np.asarray(tasks.sample_tasks(KEY, family, 4000, split=split).drawn["mu"])
        np.testing.assert_allclose([mu.mean(), mu.std()], [-1.0, 1.0], atol=0.05)


@pytest.mark.parametrize(
    ("name", "leaf", "told"),
    [
        ("FourRooms-misc", "goal", r"every reset draws the same goal; .*resample_goal_pos=True\)"),
        ("DeepSea-bsuite", "action_mapping", r"same action_mapping; .*sample_action_map=True\)"),
        ("CartPole-v1", "time", "every reset draws the same time$"),
    ],
)
def test_pins_that_do_not_vary_are_warned_of_with_what_makes_them(name, leaf, told):
    with pytest.warns(UserWarning, match=f"family='{name}' would have no variety.*{told}") as seen:
        transform.pinned(transform.from_gymnax(name, horizon=3), leaf)
    assert seen[0].filename == __file__


def test_two_tasks_are_variety_and_one_of_one_s_own_law_is_none():
    bandit = transform.from_gymnax("BernoulliBandit-misc", horizon=3)
    drawn = transform.pinned(bandit, "reward_probs").train
    probabilities = {
        tuple(np.asarray(drawn(jax.random.key(i)).drawn["reward_probs"])) for i in range(9)
    }
    assert len(probabilities) == 2
    with pytest.warns(UserWarning, match="inside draws one and the same reward_probs"):
        transform.pinned(bandit, "reward_probs", inside=lambda key: {"reward_probs": jnp.ones(2)})


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        ({"resample_goal_pos": 3.5}, TypeError, "resample_goal_pos=3.5 must be true or false"),
        ({"resample_goal_pos": 1}, TypeError, "resample_goal_pos=1 must be true or false"),
        ({"max_steps_in_episode": 2.5}, TypeError, "max_steps_in_episode=2.5 must be an integer"),
        ({"max_steps_in_episode": True}, TypeError, "must be an integer"),
        ({"max_steps_in_episode": 2**40}, ValueError, "=1099511627776 .* that int32 holds"),
        ({"fail_prob": "0.1"}, TypeError, "fail_prob='0.1' must be a real number"),
        ({"fail_prob": None}, TypeError, "fail_prob=None must be a real number"),
        (
            {"fail_prob": float("nan")},
            ValueError,
            "fail_prob=nan must be a real number that is fin",
        ),
        ({"fail_prob": 1e300}, ValueError, "fail_prob=1e.300 must be .* that float32 holds"),
        ({"fail_prob": 2**24 + 1}, ValueError, "fail_prob=16777217 must be .* that float32 holds"),
        (
            {"fail_prob": [0.1, 0.2]},
            ValueError,
            r"fail_prob=.* has shape \(2,\); it must be a real",
        ),
        ({}, ValueError, "values=.* must hold at least one"),
    ],
)
def test_parameters_of_another_kind_are_refused(values, error, told):
    family = transform.from_gymnax("FourRooms-misc", horizon=3)
    with pytest.raises(error, match=told):
        transform.with_parameters(family, **values)


def test_parameters_of_the_same_kind_are_set_and_keep_their_type():
    family = transform.from_gymnax("FourRooms-misc", horizon=3)
    before = family.train(KEY)
    for value in (0, 0.25, np.float64(0.25), np.int64(1), jnp.asarray(0.25), np.asarray(0.25)):
        task = transform.with_parameters(family, fail_prob=value).train(KEY)
        assert task.fail_prob == float(value)
        assert task.fail_prob.dtype == before.fail_prob.dtype
    task = transform.with_parameters(family, resample_goal_pos=np.True_).train(KEY)
    assert task.resample_goal_pos
    assert task.resample_goal_pos.dtype == bool


@pytest.mark.parametrize(
    ("name", "ranges", "error", "told"),
    [
        ("Asterix-MinAtar", {"shot_cool_down": (0.5, 4)}, TypeError, "=0.5 must be an integer"),
        ("Asterix-MinAtar", {"shot_cool_down": (0, 2**40)}, ValueError, "that int32 holds"),
        ("Pendulum-v1", {"g": (True, 2.0)}, TypeError, "g=True must be a real number"),
        ("Pendulum-v1", {"g": ("1", 2.0)}, TypeError, "g='1' must be a real number"),
        ("Pendulum-v1", {"g": (1.0, float("inf"))}, ValueError, "g=inf must be .* finite"),
        ("Pendulum-v1", {"g": (1.0, 1.0 + 1e-12)}, ValueError, "g=.* low < high"),
        ("Pendulum-v1", {"g": (1.0, 2.0, 3.0)}, TypeError, r"must be a range \(low, high\)"),
        ("Pendulum-v1", {}, ValueError, "ranges=.* must hold at least one"),
    ],
)
def test_ranges_that_can_only_be_mistakes_are_refused(name, ranges, error, told):
    with pytest.raises(error, match=told):
        transform.drawn_parameters(transform.from_gymnax(name, horizon=3), ranges)


def test_pins_are_of_the_leaves_shape_and_kind():
    family = transform.from_gymnax("Reacher-misc", horizon=3)

    def pin(value, leaf="goal_xy"):
        return transform.pinned(family, "goal_xy", inside=lambda key: {leaf: value})

    with pytest.raises(ValueError, match="leaves=.* must name 'goal_xy' once"):
        transform.pinned(family, "goal_xy", "goal_xy")
    with pytest.raises(TypeError, match=r"inside\(key\)=.* must be a dict of \('goal_xy',\)"):
        pin(jnp.zeros(2), "goal")
    with pytest.raises(TypeError, match=r"\['goal_xy'\] is float32\[3\]; .* float32\[2\]"):
        pin(jnp.zeros(3))
    with pytest.raises(TypeError, match=r"is bool\[2\]; in the state it is float32"):
        pin(jnp.zeros(2, bool))
