import functools
from importlib import metadata

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnax.wrappers import FlattenObservationWrapper

from jaxmeta import evaluation, rollouts, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.tasks.time_limit import steps_without_reset
from tests.probes import ALL_FAMILIES, EVERY_FAMILY, made

FEW = {
    "ant_direction",
    "asterix",
    "breakout",
    "bus",
    "deep_sea",
    "dark_key_to_door",
    "dark_room",
    "dependent_bandit",
    "discounting_chain",
    "freeway",
    "gridnavi",
    "gridworld",
    "half_cheetah_direction",
    "half_circle",
    "maze",
    "seaquest",
    "space_invaders",
    "t_maze",
    "translation",
    "xland",
}
"""Families in which a few draws may coincide, in one split at least and in what is looked at."""
ONE = {"catch"}
"""Of one task alone."""


of_each_family = pytest.mark.parametrize("name", EVERY_FAMILY, scope="module")
"""All tests of one family, then all of the next: they share what they compile."""
of_all_families = pytest.mark.parametrize("name", ALL_FAMILIES, scope="module")


@functools.cache
def drawn(name, split):
    """Forty tasks of a split, ``[M]``."""
    family = made(name)
    return jax.jit(lambda: tasks.sample_tasks(jax.random.key(0), family, 40, split=split))()


@of_all_families
def test_samplers_make_batches_of_typed_leaves(name):
    for split in tasks.SPLITS:
        many = drawn(name, split)
        one = jax.eval_shape(getattr(made(name), split), jax.random.key(0))
        assert jax.tree.structure(many) == jax.tree.structure(one)
        for x, single in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            assert x.shape == (40, *single.shape)
            assert x.dtype == single.dtype
            assert not x.weak_type
        # The task varies, and every draw is a draw of its own.
        few = [np.asarray(x)[:12] for x in jax.tree.leaves(many)]
        varying = [x for x in few if not np.all(x == x[:1])]
        assert bool(varying) == (name not in ONE)
        if name not in FEW:
            for x in varying:
                assert len(np.unique(x.reshape(12, -1)[:, 0])) == 12


@of_each_family
def test_spaces_are_those_of_the_environment(name):
    family = made(name)
    obs, action = jax.eval_shape(
        lambda key: (family.env.reset_env(key, family.train(key))[0], family.random_action(key)),
        jax.random.key(0),
    )
    assert obs.shape == family.observation_shape
    assert action.shape == family.action_space.shape
    assert jax.jit(lambda key: family.action_space.contains(family.random_action(key)))(
        jax.random.key(2)
    )
    assert family.name == name


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "tabular"])
def test_random_actions_are_uniform(name):
    family = tasks.make(name)
    actions = jax.vmap(family.random_action)(jax.random.split(jax.random.key(0), 20_000))
    assert actions.dtype == family.action_space.dtype
    counts = np.bincount(actions, minlength=family.action_space.n)
    assert counts.size == family.action_space.n
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


BOARDS = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
"""Families whose histories are long: unoptimised programs of jax 0.11 copy all of a history at each step."""


def controller(family):
    return family.optimal_action or family.expert_action


@functools.cache
def player(name, told):
    """A family, some of its tasks, and a program ``(keys, tasks, asking) -> (trajectories [M, T], returns)``.

    Actions are random or, if the agent may be told the task and ``asking``, the controller's. Then there
    are two episodes, and their returns ``[M, 2]``; else there are few steps.
    """
    family, played = made(name), drawn(name, "test")
    if told and name in BOARDS:
        family = tasks.make(name, horizon=60)
        played = jax.jit(lambda key: tasks.sample_tasks(key, family, 40, split="test"))(
            jax.random.key(0)
        )

    def policy(key, meta, obs):
        if not told:
            return family.random_action(key)
        task, asking = meta
        return jax.lax.cond(
            asking,
            lambda: jnp.asarray(controller(family)(task, obs), family.action_space.dtype),
            lambda: family.random_action(key),
        )

    steps = 2 * family.horizon if told else min(family.horizon + 3, 24)
    learner = evaluation.controller_learner(policy)
    setup = rollouts.Setup(learner, family.env, num_streams=1, num_steps=steps)

    def one(key, task, asking):
        history = rollouts.lifetime(key, (task, asking), task, setup=setup, num_updates=0)
        data = jax.tree.map(lambda x: x[0], history.trajectories)
        seen = evaluation.Trials(data.action, data.reward, data.last, finite_streams(data))
        return jax.tree.map(lambda x: x[0], data), evaluation.episode_returns(seen, 2)[0]

    return family, jax.device_get(played), jax.jit(jax.vmap(one, in_axes=(0, 0, None)))


KEYS = np.arange(80, dtype=np.uint32).reshape(40, 2)


@of_each_family
def test_rollouts_are_a_function_of_task_and_key_and_stay_in_the_space(name):
    told = name not in BOARDS and controller(made(name)) is not None
    family, played, program = player(name, told)
    copies = jax.tree.map(lambda x: np.repeat(x[1:2], 40, axis=0), (KEYS, played))
    together, again, alone = (
        jax.device_get(program(jax.random.wrap_key_data(keys), played, False)[0])
        for keys, played in ((KEYS, played), (KEYS, played), copies)
    )
    for a, b, c in zip(*map(jax.tree.leaves, (together, again, alone)), strict=True):
        np.testing.assert_array_equal(a, b)
        # What happens in one task is nothing to another. A physical rollout may amplify rounding.
        np.testing.assert_allclose(c[:, :24], np.repeat(a[1:2, :24], 40, 0), rtol=1e-3, atol=1e-3)
    assert np.all(together.timestep.first[:, 0])
    space = family.env.observation_space(family.env.default_params)
    low, high = (np.asarray(x) for x in (space.low, space.high))
    for obs in (together.timestep.obs, together.next_obs):
        assert obs.shape[2:] == space.shape
        assert np.all(np.isfinite(obs))
        assert np.all((obs >= low - 1e-4) & (obs <= high + 1e-4))
    assert np.all(np.isfinite(together.reward))


@pytest.mark.parametrize("name", EVERY_FAMILY, scope="module")
def test_a_task_survives_the_end_of_an_episode(name):
    """An agent that is told the task earns in the second episode as much as in the first: it is the same task."""
    if controller(made(name)) is None:
        pytest.skip("the family has neither an optimal action nor an expert")
    _, played, program = player(name, True)
    keys = jax.random.wrap_key_data(KEYS)
    told, random = (np.asarray(program(keys, played, asking)[1]) for asking in (True, False))
    first, second = told.T
    gained = told.mean(0) - random.mean()
    assert gained[0] > 0
    spread = np.std(first - second) / np.sqrt(40)
    assert abs(gained[1] - gained[0]) <= 0.1 * gained[0] + 4 * spread


CONTENT = {
    "acrobot": ["488543c27bf37dc6", "488543c27bf37dc6", "5856d600f565d3ec"],
    "ant_direction": ["5cca781f19110da3", "5cca781f19110da3", "72a8079b4993d49c"],
    "ant_goal": ["366592548eb94fe6", "366592548eb94fe6", "4ee9b56c4acad52c"],
    "asterix": ["3b926ef18a7545bd", "b668e84f8c79f55c", "67bf3c760878daf3"],
    "bernoulli_bandit": ["5c84481a25b07f36", "5c84481a25b07f36", "cfe49c630b1f27c8"],
    "breakout": ["20e00f4677a4d334", "d5aa550743ff8230", "8e082406f80c8c24"],
    "bus": ["a169139f519a1735", "a169139f519a1735", "079e870f73cb8847"],
    "cartpole": ["7f666fa6f6752d61", "7f666fa6f6752d61", "d960198897403624"],
    "catch": ["fe21dee5312efa1f", "fe21dee5312efa1f", "fe21dee5312efa1f"],
    "dark_key_to_door": ["18c680932d0c3521", "408cbd58a4cbeb31", "6df48f54b765a1e5"],
    "dark_room": ["39fcd6c92766d4dd", "4493b0987f4dee2c", "936b572928b9e692"],
    "deep_sea": ["0d1be005ea68f8a7", "0d1be005ea68f8a7", "8a29faa5a77a2b79"],
    "dependent_bandit": ["2604a6b9c5876bbd", "2604a6b9c5876bbd", "16f774c9b2ce499e"],
    "discounting_chain": ["615b857d42642e16", "615b857d42642e16", "7e23c02d122a87c5"],
    "freeway": ["845738c6b3e06e7e", "dcc824ecea8d7c98", "b2cd05a9e3340088"],
    "gaussian_bandit": ["f8df1bd3e75297ff", "f8df1bd3e75297ff", "2d538689a0e546a7"],
    "gridnavi": ["74c2c27ce88b508b", "74c2c27ce88b508b", "f843467ccb197216"],
    "gridworld": ["b632f905dc420ff0", "b632f905dc420ff0", "54daa0b2c8c518d3"],
    "half_cheetah_direction": ["7f1b1e552db48158", "7f1b1e552db48158", "8684b1a089ad246b"],
    "half_cheetah_velocity": ["b031b03159128f75", "b031b03159128f75", "aee02be5e4c5c175"],
    "half_circle": ["6c92466ba8fbe48f", "f2a4b94dd5570df1", "37398597c60522e8"],
    "latent_tabular": ["f42a16cee9b98920", "f42a16cee9b98920", "7d814aa13ca4a916"],
    "maze": ["df69dcf8524a58f9", "37483f666e57b911", "0b44c27655a3ffe4"],
    "mountain_car": ["43f1d5fd6b612eec", "43f1d5fd6b612eec", "d2efff736421acdd"],
    "navigation": ["f6e85ba5ae2ef08b", "f6e85ba5ae2ef08b", "6d0ec0b799201431"],
    "pendulum": ["672d5a334a40c8c4", "672d5a334a40c8c4", "7dc497432767fecd"],
    "reacher": ["05191e7a59157870", "05191e7a59157870", "29faf7894ab97a32"],
    "seaquest": ["ec04547187d642d4", "546d21711c0db25d", "3bb061268beeb40b"],
    "space_invaders": ["5803ee93949826e6", "b28a01089d8038b9", "c13304fc10d4a2f8"],
    "sparse_navigation": ["f6e85ba5ae2ef08b", "f6e85ba5ae2ef08b", "6d0ec0b799201431"],
    "summarisation": ["d282a4ac097ad9f3", "d282a4ac097ad9f3", "fa045d604a23e134"],
    "swimmer": ["ac7671c448362280", "ac7671c448362280", "fa76a59e19e4ae5b"],
    "t_maze": ["25980f71a6c2c18b", "25980f71a6c2c18b", "5dd897e9a17aa7fd"],
    "tabular": ["d8aecd57a11e2376", "d8aecd57a11e2376", "32f0b2aa20bf6f36"],
    "translation": ["25757f44ed88124c", "b5f624df55491aef", "24ab9e61b5d47775"],
    "walker_params": ["5e159b38e5d345c1", "5e159b38e5d345c1", "1f1259a49038f9f6"],
    "xland": ["2efe364607f03dfb", "94a829b35ac82c4a", "ce025c69c8e235df"],
}
"""Of train, test and out of distribution: a measured figure is for these tasks."""


WORDS = {"babel": "2.19.0", "num2words": "0.5.14"}


@of_all_families
def test_splits_are_what_figures_were_measured_on(name, monkeypatch):
    family = made(name)
    monkeypatch.setattr(  # the first of many draws are those that it makes
        tasks.family,
        "sample_tasks",
        lambda key, family, few, split: jax.tree.map(
            lambda x: np.asarray(x)[:few], drawn(name, split)
        ),
    )
    if name == "translation" and {x: metadata.version(x) for x in WORDS} != WORDS:
        pytest.skip(f"languages change from release to release; figures are of {WORDS}")
    hashes = [tasks.content_hash(family, split) for split in tasks.SPLITS]
    assert hashes == CONTENT[name]
    if name not in ONE:
        assert hashes[2] not in hashes[:2]


def test_the_content_hash_sees_a_changed_law():
    assert tasks.content_hash(tasks.make("cartpole"), "train") == CONTENT["cartpole"][0]
    assert tasks.content_hash(tasks.make("cartpole", scale=2.01), "train") != CONTENT["cartpole"][0]


RUN = (
    "bernoulli_bandit",
    "breakout",
    "cartpole",
    "gridnavi",
    "navigation",
    "summarisation",
    "tabular",
)
"""A family for each kind of observation, of action and of environment."""


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_a_learner_learns_once_in_every_family(name):
    """Traced: shapes and types are what a learner needs of a family. In one of each kind it runs, too."""
    family = made(name)
    algorithm = rl2(family, Config(memory="linear", memory_size=8, num_epochs=1, num_minibatches=1))

    def learned(key):
        drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
        state = algorithm.init(key)
        return state, *algorithm.step(jax.random.key(2), state, drawn)

    run = jax.jit(learned) if name in RUN else functools.partial(jax.eval_shape, learned)
    state, after, metrics = run(jax.random.key(0))
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    if name not in RUN:
        return
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert int(metrics["env_steps"]) == 2 * family.horizon
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), after.meta.params, state.meta.params)
    assert any(jax.tree.leaves(moved))


def test_what_steps_without_reset_has_both_halves_of_its_own():
    inner = gymnax.make("Catch-bsuite")[0]
    halves = {"step_env": lambda self: None, "reset_env": lambda self: None}
    assert steps_without_reset(inner)
    assert not steps_without_reset(FlattenObservationWrapper(inner))
    for name, half in halves.items():
        assert not steps_without_reset(
            type("Half", (FlattenObservationWrapper,), {name: half})(inner)
        )
    assert steps_without_reset(type("Both", (FlattenObservationWrapper,), halves)(inner))
