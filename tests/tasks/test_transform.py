"""Every registered gymnax environment as a family, and what each transformation does to one."""

import dataclasses
import functools
import itertools
import math

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.utils import load_mnist
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import transform
from jaxmeta.tasks.transform import TransformedParams, laws, wrappers

ENVIRONMENTS = sorted(set(gymnax.registered_envs) - set(transform.UNSUPPORTED))


def discrete(family):
    return isinstance(family.action_space, spaces.Discrete)


def sized(family):
    """Whether an observation is an array and no number."""
    return family.observation_shape != ()


@functools.cache
def everything(name, horizon=6):
    """Every transformation that applies to the environment, one on the other."""
    family = transform.from_gymnax(name, horizon=horizon)
    if fields := transform.parameter_fields(family):
        default = family.train(None)
        ranges = {}
        for field in fields:
            value = getattr(default, field).item()
            ranges[field] = (value, value + 1) if isinstance(value, int) else (value, value + 0.1)
        family = transform.drawn_parameters(family, ranges, law="uniform")
    if name in transform.IDENTITY:
        family = transform.pinned(family, *transform.IDENTITY[name])
    if discrete(family):
        family = transform.permuted_actions(family)
        family = transform.remapped_actions(family, num_buttons=family.action_space.n + 1)
    else:
        family = transform.flipped_actions(family)
        if family.action_space.shape[0] > 1:
            family = transform.rotated_actions(family)
    family = transform.permuted_observations(family)
    if sized(family) and math.prod(family.observation_shape) > 1:
        family = transform.masked_observations(family, num_hidden=1)
        family = transform.projected_observations(family, size=5)
    family = transform.sticky_actions(family)
    family = transform.signed_rewards(transform.scaled_rewards(family))
    return transform.delayed_rewards(family, max_delay=2)


def episodes(key, task, env, actions):
    """Steps as a rollout takes them: ``(obs, reward, last) [T]``."""

    def step(state, inputs):
        key, action = inputs
        step_key, reset_key = jax.random.split(key)
        obs, next_state, reward, terminated, _ = env.step_env(step_key, state, action, task)
        last = jnp.logical_or(terminated, env.is_truncated(next_state, task))
        _, reset_state = env.reset_env(reset_key, task)
        next_state = jax.tree.map(
            lambda x, y, old: jnp.where(last, x, y).astype(old.dtype),
            reset_state,
            next_state,
            state,
        )
        return next_state, (jnp.asarray(obs, float), jnp.asarray(reward, float), last)

    _, state = env.reset_env(key, task)
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(actions))
    return jax.lax.scan(step, state, (keys, actions))[1]


def allowed(name):
    """gymnax's Swimmer broadcasts a vector against a matrix."""
    return jax.numpy_rank_promotion("allow" if name == "Swimmer-misc" else "raise")


def random_actions(family, seed, count):
    return jax.vmap(family.random_action)(jax.random.split(jax.random.key(seed), count))


def unstacked(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def all_of(values, num_places):
    return {x for x in itertools.product(range(values), repeat=num_places) if len(set(x)) == values}


# Every environment of gymnax


@pytest.mark.parametrize("name", ENVIRONMENTS)
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


KEY = jax.random.key(7)


def test_what_is_unsupported_needs_a_download(monkeypatch):
    assert set(transform.UNSUPPORTED) == {"MNISTBandit-bsuite"}
    assert set(transform.UNSUPPORTED) | set(ENVIRONMENTS) == set(gymnax.registered_envs)

    def refused(url, filename):
        raise ConnectionError(url)

    monkeypatch.setattr(load_mnist, "urlretrieve", refused)
    monkeypatch.setattr(load_mnist.path, "isfile", lambda name: False)
    with pytest.raises(ConnectionError):
        transform.from_gymnax("MNISTBandit-bsuite", horizon=1)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_identity_lists_what_a_reset_draws_and_no_step_changes(name):
    family = transform.from_gymnax(name, horizon=50)
    task = family.train(None)
    switches = {"sample_action_map", "resample_goal_pos"} & set(dir(task))
    task = task.replace(**{switch: True for switch in switches})
    actions = random_actions(family, 0, 12)

    def two_states(key):
        _, first = family.env.reset_env(key, task)
        first = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), first)

        def step(state, inputs):
            after = family.env.step_env(*inputs[:1], state, inputs[1], task)[1]
            return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), after, state), None

        return first, jax.lax.scan(step, first, (jax.random.split(key, 12), actions))[0]

    with allowed(name):
        first, later = jax.jit(jax.vmap(two_states))(jax.random.split(jax.random.key(0), 8))
    found = set()
    for field in dataclasses.fields(first):
        before, after = (np.asarray(getattr(x, field.name)) for x in (first, later))
        if np.array_equal(before, after) and not np.all(before == before[:1]):
            found.add(field.name)
    found -= {"ball_x"} if name == "Catch-bsuite" else set()  # it falls straight down, and is seen
    # A context of one bit is always asked for as a whole.
    found |= {"query"} if name == "MemoryChain-bsuite" else set()
    assert found == set(transform.IDENTITY.get(name, ()))


@pytest.mark.parametrize("name", sorted(transform.IDENTITY))
def test_what_is_pinned_survives_every_reset(name):
    family = transform.from_gymnax(name, horizon=4)
    switches = {"sample_action_map", "resample_goal_pos"} & set(dir(family.train(None)))
    family = transform.with_parameters(family, **{switch: True for switch in switches})
    leaves = transform.IDENTITY[name]
    family = transform.pinned(family, *leaves)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 12, split="train")

    def resets(task, key):
        obs, state = family.env.reset_env(key, task)
        observed = family.env.env.observe(jax.random.split(key)[1], state, None, task.inner)
        return obs, observed, {leaf: getattr(state, leaf) for leaf in leaves}

    keys = jax.random.split(jax.random.key(1), 3)
    obs, observed, state = jax.jit(
        jax.vmap(lambda task: jax.vmap(functools.partial(resets, task))(keys))
    )(drawn)
    np.testing.assert_array_equal(obs, observed)
    for leaf in leaves:
        pin = np.asarray(drawn.drawn[leaf])
        np.testing.assert_array_equal(state[leaf], np.stack([pin] * 3, axis=1))
    assert any(not np.all(x == x[:1]) for x in map(np.asarray, drawn.drawn.values()))


@struct.dataclass
class OwnParams:
    """No time limit."""

    number: float = 2.0


class Own(environment.Environment):
    """Counts, and never ends."""

    @property
    def default_params(self):
        return OwnParams()

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        return jnp.full(1, state + 1.0), state + 1, params.number, jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def observe(self, key, state, action, params):
        return jnp.full(1, state)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0.0, jnp.inf, (1,))


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    gymnax.register("Own", Own)
    yield "Own"
    gymnax.registered_envs.remove("Own")


def test_your_own_environment_without_a_time_limit_gets_one(own):
    family = transform.from_gymnax(own, horizon=3)
    assert transform.parameter_fields(family) == ("number",)
    obs, reward, last = episodes(KEY, family.train(None), family.env, jnp.zeros(7, int))
    assert last.tolist() == [False, False, True] * 2 + [False]
    assert obs[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert reward.tolist() == [2.0] * 7
    _, state = family.env.reset_env(KEY, family.train(None))
    assert family.env.observe(KEY, state, None, family.train(None)) == 0


def test_the_horizon_is_the_time_limit_and_settings_reach_the_constructor():
    family = transform.from_gymnax("DeepSea-bsuite", horizon=3, size=5)
    assert family.observation_shape == (5, 5)
    _, _, last = episodes(KEY, family.train(None), family.env, jnp.zeros(7, int))
    assert last.tolist() == [False, False, True] * 2 + [False]
    assert transform.from_gymnax("BernoulliBandit-misc", horizon=3).train(
        None
    ).max_steps_in_episode.dtype == jnp.result_type(float)


def test_equal_settings_make_equal_environments():
    make = functools.partial(transform.from_gymnax, "DeepSea-bsuite", horizon=3)
    assert make(size=4).env is make(size=4).env
    assert make(size=4).env is not make(size=5).env
    first, second = (everything.__wrapped__("Catch-bsuite").env for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    shorter = transform.delayed_rewards(make(size=4), max_delay=1)
    assert shorter.env != transform.delayed_rewards(make(size=4), max_delay=2).env


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
    with pytest.raises(ValueError, match="family='Pendulum-v1' has continuous actions"):
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
    with pytest.raises(ValueError, match="must name at least one field"):
        transform.pinned(catch)
    with pytest.raises(ValueError, match="scale=1 must be above 1"):
        transform.scaled_rewards(catch, scale=1)
    with pytest.raises(ValueError, match=r"outside=0.1 must lie between 0.25 and 1.0"):
        transform.sticky_actions(catch, outside=0.1)


# Parameters


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
    state = family.env.reset_env(KEY, task)[1].replace(theta=jnp.array(0.1))
    assert family.optimal_action is None
    first, second = (family.env.step_env(KEY, state, jnp.array(0), t)[0] for t in (task, other))
    assert not np.array_equal(first, second)
    assert family.expert_action(task, jnp.ones(4)) == 1


# Actions


@given(
    num_values=st.integers(1, 5),
    extra=st.integers(0, 2),
    split=st.sampled_from(tasks.SPLITS),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_every_value_has_a_place_and_the_splits_are_what_they_say(num_values, extra, split, seed):
    num_places = num_values + extra
    drawn = np.asarray(
        laws.assignment(jax.random.key(seed), num_values, num_places, split)
    ).tolist()
    assert len(drawn) == num_places
    assert set(drawn) == set(range(num_values))
    if num_values >= 3:
        assert (drawn[-1] == 0) == (split == "out_of_distribution")
        if split != "out_of_distribution":
            order = list(dict.fromkeys(drawn))
            odd = sum(a > b for a, b in itertools.combinations(order, 2)) % 2
            assert odd == (split == "test")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("Catch-bsuite", (2, 2, 2)), ("SpaceInvaders-MinAtar", (9, 9, 6)), ("CartPole-v1", (2, 2, 2))],
)
def test_permutations_are_uniform_and_those_of_the_splits_disjoint(name, sizes):
    family = transform.permuted_actions(transform.from_gymnax(name, horizon=3))
    found = []
    for split, size in zip(tasks.SPLITS, sizes, strict=True):
        drawn = tasks.sample_tasks(jax.random.key(0), family, 3000, split=split).drawn
        values, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
        assert len(values) == size
        np.testing.assert_allclose(counts / 3000, 1 / size, atol=0.03)
        found.append({tuple(x) for x in values.tolist()})
    n = family.action_space.n
    assert set.union(*found) == set(itertools.permutations(range(n)))
    if n >= 3:
        assert not found[0] & found[1]
        assert not (found[0] | found[1]) & found[2]


def test_remapped_actions_are_all_there_is_and_disjoint():
    family = transform.remapped_actions(tasks.make("catch"), num_buttons=4)
    assert family.action_space.n == 4
    found = []
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split).drawn
        found.append({tuple(x) for x in np.asarray(drawn).tolist()})
    assert set.union(*found) == all_of(3, 4)
    assert len(found[0]) + len(found[1]) + len(found[2]) == len(all_of(3, 4))


@pytest.mark.parametrize("change", ["permuted", "remapped"])
def test_a_button_does_its_action_and_controllers_know_the_buttons(change):
    inner = tasks.make("catch")
    family = (
        transform.permuted_actions(inner)
        if change == "permuted"
        else transform.remapped_actions(inner, num_buttons=5)
    )
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(np.asarray(best(KEY)) == 1.0)
    task = family.test(jax.random.key(3))
    _, state = family.env.reset_env(KEY, task)
    for button in range(family.action_space.n):
        pressed = family.env.step_env(KEY, state, jnp.array(button), task)[0]
        meant = inner.env.step_env(KEY, state, task.drawn[button], task.inner)[0]
        np.testing.assert_array_equal(pressed, meant)
    for obs in jnp.eye(50).reshape(50, 10, 5)[::7]:
        action = inner.optimal_action(task.inner, obs)
        assert task.drawn[family.optimal_action(task, obs)] == action


def test_flips_of_three_and_more_are_disjoint():
    reacher = transform.from_gymnax("Reacher-misc", horizon=3, num_joints=3)
    family = transform.flipped_actions(reacher)
    found = []
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 300, split=split).drawn
        found.append({tuple(x) for x in np.asarray(drawn).tolist()})
    assert [len(x) for x in found] == [2, 2, 4]
    assert set.union(*found) == set(itertools.product([-1.0, 1.0], repeat=3))
    for split in tasks.SPLITS:
        two = transform.flipped_actions(tasks.make("navigation"))
        drawn = tasks.sample_tasks(jax.random.key(0), two, 100, split=split).drawn
        assert len(np.unique(np.asarray(drawn), axis=0)) == 4


def test_flipped_actions_are_mirrored_at_the_middle():
    class Uneven(Own):
        def action_space(self, params=None):
            return spaces.Box(jnp.array([0.0, -1.0]), jnp.array([4.0, 1.0]), (2,))

    env = transform.FlippedActions(Uneven())
    task = TransformedParams(OwnParams(), jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(env.act(jnp.array([1.0, 0.5]), task), [3.0, 0.5])
    env = transform.RotatedActions(Uneven())
    task = TransformedParams(OwnParams(), jnp.array([math.pi / 2]))
    np.testing.assert_allclose(env.act(jnp.array([3.0, 0.0]), task), [2.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(env.act(jnp.array([4.0, 1.0]), task), [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("change", [transform.flipped_actions, transform.rotated_actions])
def test_controllers_undo_what_was_done_to_actions(change):
    inner = tasks.make("navigation")
    family = change(inner)
    task = family.test(jax.random.key(0))
    task = task.replace(inner=task.inner.replace(goal=jnp.array([0.03, -0.05])))
    controller = family.optimal_action or family.expert_action
    action = family.env.act(controller(task, jnp.zeros(2)), task)
    np.testing.assert_allclose(action, task.inner.goal, atol=1e-6)
    assert (family.optimal_action is None) == (change is transform.rotated_actions)


def test_angles_lie_where_the_split_says():
    family = transform.rotated_actions(tasks.make("navigation"), max_angle=1.0)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split).drawn
        angle = np.abs(drawn)
        least, most = (1.0, 1.5) if split == "out_of_distribution" else (0.0, 1.0)
        np.testing.assert_allclose([angle.min(), angle.max()], [least, most], atol=0.01)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_sticky_actions_stick_with_their_probability(probability):
    """CartPole's force says which action was taken; the last action asked for is the other one."""
    family = transform.sticky_actions(tasks.make("cartpole"))
    task = TransformedParams(family.env.env.default_params, jnp.array(probability))

    @jax.vmap
    def second(key):
        _, state = family.env.reset_env(key, task)
        first_key, second_key = jax.random.split(key)
        _, state, *_ = family.env.step_env(first_key, state, jnp.array(1), task)
        taken = state.action == 1  # whatever the probability
        _, state, *_ = family.env.step_env(second_key, state, jnp.array(0), task)
        return taken, state.action == 1, state.inner.x_dot > 0

    first, stuck, right = second(jax.random.split(KEY, 2000))
    assert np.all(first)
    np.testing.assert_allclose(np.mean(stuck), probability, atol=0.04)
    if probability == 1.0:
        assert np.all(right)


def test_what_sticks_is_what_was_taken_and_a_reset_forgets_it():
    family = transform.sticky_actions(tasks.make("catch"))
    task = TransformedParams(family.env.env.default_params, jnp.array(1.0))
    _, state = family.env.reset_env(KEY, task)
    assert state.first
    for action in (2, 0, 1):
        _, state, *_ = family.env.step_env(KEY, state, jnp.array(action), task)
        assert state.action == 2
        assert not state.first
    assert state.inner.paddle_x == 4
    assert family.optimal_action is None
    assert family.expert_action is not None


# Observations


def test_permuted_observations_by_element_and_by_axis():
    inner = tasks.make("catch")
    task = inner.test(KEY)
    obs, _ = inner.env.reset_env(KEY, task)
    for axis, size in ((None, 50), (0, 10), (1, 5)):
        family = transform.permuted_observations(inner, axis=axis)
        drawn = family.train(jax.random.key(1))
        order = np.asarray(drawn.drawn)
        assert sorted(order.tolist()) == list(range(size))
        seen, _ = family.env.reset_env(KEY, drawn)
        expected = np.take(np.asarray(obs), order, axis=axis).reshape(obs.shape)
        np.testing.assert_array_equal(seen, expected)
        assert family.optimal_action(drawn, seen) == inner.optimal_action(task, obs)


def test_a_state_s_number_is_permuted():
    inner = transform.from_gymnax("FrozenLake-misc", horizon=9)
    inner = dataclasses.replace(inner, expert_action=lambda task, obs: obs.astype(jnp.int32) % 4)
    family = transform.permuted_observations(inner)
    task = family.train(KEY)
    assert family.env.observation_space().n == 16
    _, state = family.env.reset_env(KEY, task)
    for position in range(16):
        seen = family.env.observe(KEY, state.replace(position=jnp.array(position)), None, task)
        assert seen == task.drawn[position]
        assert family.expert_action(task, seen.astype(float)) == position % 4


def test_masks_hide_as_many_as_they_say_and_differ_between_splits():
    family = transform.masked_observations(tasks.make("catch"), num_hidden=3)
    sums = {}
    for split in tasks.SPLITS:
        mask = np.asarray(tasks.sample_tasks(jax.random.key(0), family, 200, split=split).drawn)
        assert mask.shape == (200, 10, 5)
        hidden = ~mask.reshape(200, 50)
        assert np.all(hidden.sum(1) == (6 if split == "out_of_distribution" else 3))
        sums[split] = (hidden @ np.arange(50)) % 2
        assert np.all(hidden.any(0))
    assert np.all(sums["train"] == 0)
    assert np.all(sums["test"] == 1)
    task = family.train(KEY)
    task = task.replace(drawn=jnp.ones((10, 5), bool).at[9, 2].set(False))
    obs, _ = family.env.reset_env(KEY, task)
    assert obs.sum() == 1.0  # the ball; the paddle is hidden


@pytest.mark.parametrize("size", [20, 50, 60])
def test_projections_are_orthonormal_and_controllers_see_through_them(size):
    inner = tasks.make("catch")
    family = transform.projected_observations(inner, size=size)
    for split in tasks.SPLITS:
        task = getattr(family, split)(KEY)
        matrix = np.asarray(task.drawn)
        assert matrix.shape == (size, 50)
        gram = matrix @ matrix.T if size < 50 else matrix.T @ matrix
        np.testing.assert_allclose(gram, np.eye(min(size, 50)), atol=1e-5)
        assert (matrix[0, 0] < 0) == (split == "out_of_distribution")
        obs, _ = inner.env.reset_env(KEY, task.inner)
        seen, _ = family.env.reset_env(KEY, task)
        np.testing.assert_allclose(seen, matrix @ np.ravel(obs), atol=1e-5)
        if size >= 50:
            assert family.optimal_action(task, seen) == inner.optimal_action(task.inner, obs)
    assert (family.optimal_action is None) == (size < 50)


# Rewards


def test_rewards_are_scaled_and_signed():
    inner = tasks.make("gridnavi")
    family = transform.scaled_rewards(inner, scale=4.0)
    task = family.test(KEY)
    np.testing.assert_allclose(
        family.optimal_return(task), task.drawn * inner.optimal_return(task.inner)
    )
    actions = random_actions(inner, 0, 20)
    scaled = episodes(KEY, task, family.env, actions)[1]
    plain = episodes(KEY, task.inner, inner.env, actions)[1]
    np.testing.assert_allclose(scaled, task.drawn * plain, rtol=1e-6)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 500, split=split).drawn
        size = np.abs(np.log(drawn)) / np.log(4.0)
        least, most = (1.0, 1.5) if split == "out_of_distribution" else (0.0, 1.0)
        np.testing.assert_allclose([size.min(), size.max()], [least, most], atol=0.01)
        signs = tasks.sample_tasks(
            jax.random.key(0), transform.signed_rewards(inner), 500, split=split
        ).drawn
        assert set(np.asarray(signs).tolist()) == {-1.0, 1.0}
    assert transform.signed_rewards(inner).optimal_return is None


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
def test_rewards_come_late_and_returns_stay(delay):
    """On a walk whose rewards differ from step to step; an episode is of 5 steps, so 3 or 4 come at its end."""
    inner = tasks.make("navigation", horizon=5)
    family = transform.delayed_rewards(inner, max_delay=2)
    task = family.test(KEY).replace(drawn=jnp.array(delay))
    actions = random_actions(inner, 0, 10)
    late = np.asarray(episodes(KEY, task, family.env, actions)[1]).reshape(2, 5)
    plain = np.asarray(episodes(KEY, task.inner, inner.env, actions)[1]).reshape(2, 5)
    expected = np.zeros((2, 5))
    for t in range(5):
        expected[:, min(t + delay, 4)] += plain[:, t]
    np.testing.assert_allclose(late, expected, rtol=1e-5)


def test_delays_lie_where_the_split_says_and_termination_pays_what_is_owed():
    family = transform.delayed_rewards(tasks.make("catch"), max_delay=2)
    found = [
        set(np.asarray(tasks.sample_tasks(KEY, family, 100, split=split).drawn).tolist())
        for split in tasks.SPLITS
    ]
    assert found == [{0, 1, 2}, {0, 1, 2}, {3, 4}]
    drawn = tasks.sample_tasks(KEY, family, 20, split="out_of_distribution")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(np.asarray(best(KEY)) == 1.0)


# Pins


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
    np.testing.assert_array_equal(state.inner.goal_xy, task.drawn["goal_xy"])
    np.testing.assert_array_equal(obs[-2:], task.drawn["goal_xy"])


def test_without_a_law_of_their_own_pins_are_the_reset_s():
    family = transform.pinned(transform.from_gymnax("GaussianBandit-misc", horizon=3), "mu")
    for split in tasks.SPLITS:
        mu = np.asarray(tasks.sample_tasks(KEY, family, 4000, split=split).drawn["mu"])
        np.testing.assert_allclose([mu.mean(), mu.std()], [-1.0, 1.0], atol=0.05)


# Nothing drawn, nothing changed


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Asterix-MinAtar", "FrozenLake-misc", "Reacher-misc"]
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
