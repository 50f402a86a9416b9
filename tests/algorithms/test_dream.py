import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import dream as module
from jaxmeta.algorithms.dream import Config, Hyper, dream
from jaxmeta.meta_updates.outer_loop import as_arrays
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.types import Trajectory
from tests.probes import thorough

SMALL = dict(
    memory_size=4,
    hidden_sizes=(4,),
    encoder_sizes=(4,),
    bottleneck_sizes=(4,),
    latent_size=3,
    num_epochs=1,
    num_minibatches=1,
)


@pytest.fixture(scope="module")
def family():
    return tasks.make("bus", world="map", horizon=5)


def trials_of_three_episodes():
    """Two trials of 3 episodes of at most 4 steps, in which step t pays t. One has episodes of 3, 2 and 1 steps, the other of 4, 1 and 4."""
    first = jnp.asarray(
        [[1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]]
    )
    counted = jnp.asarray([[1] * 6 + [0] * 6, [1] * 9 + [0] * 3], bool)
    time = jnp.broadcast_to(jnp.arange(12.0), (2, 12))
    inputs = Inputs(
        obs=time[..., None],
        past=jnp.ones((2, 12, 2)),
        time=jnp.stack([first.astype(float), time], axis=-1),
        reset=time == 0,
    )
    return inputs, counted


def test_episodes_are_told_apart():
    of = jax.tree.map(lambda x: x[0, :8].tolist(), module.episodes(*trials_of_three_episodes()))
    assert of.explores == [1, 1, 1, 0, 0, 0, 0, 0]
    assert of.exploits == [0, 0, 0, 1, 1, 1, 0, 0]
    assert of.begins == [1, 0, 0, 1, 0, 1, 0, 0]
    assert of.read == [0, 0, 0, 1, 0, 0, 0, 0]


def test_information_gain_is_the_fall_of_the_error_and_sums_up_to_the_whole():
    distance = jnp.asarray([[5.0, 4.0, 4.5, 1.0, 9.0]])
    explores = jnp.asarray([[1, 1, 1, 0, 0]], bool)
    gain = module.information_gain(distance, explores)
    assert gain.tolist() == [[1.0, -0.5, 3.5, 0.0, 0.0]]
    assert gain.sum() == 5 - 1  # that before the first step less that after the last


def known_networks():
    """Networks of known outputs: f = (1, 2), g at step t is (t, t), the explorer's value is 0, and the exploiter's is z's first entry."""

    def nothing():
        return ()

    def seen(params, state, inputs):
        return jnp.tile(inputs.obs, (1, 2))

    def told(params, state, inputs):
        return None, inputs.time[:, -2]

    critic = module.ActorCritic
    return module.Networks(
        bottleneck=module.Network(
            None, lambda params, x: jnp.tile(jnp.asarray([1.0, 2.0]), (2, 1))
        ),
        decoder=module.ActionValues(None, nothing, None, seen),
        explorer=critic(
            None, nothing, None, lambda params, state, x: (None, jnp.zeros(len(x.obs)))
        ),
        exploiter=critic(None, nothing, None, told),
    )


def prepared(decoder_reads="exploration", **numbers):
    """What DREAM learns from `trials_of_three_episodes`, of which the second's exploiter is told f + (3, 3)."""
    inputs, _ = trials_of_three_episodes()
    number = jnp.cumsum(inputs.time[..., 0] > 0, axis=1)
    nothing = jnp.zeros((2, 12))
    last = jnp.concatenate([number[:, 1:] > number[:, :-1], jnp.zeros((2, 1), bool)], axis=1)
    last = last.at[0, 5].set(True).at[1, 8].set(True)
    data = Trajectory((), nothing, nothing, inputs.obs[..., 0], (), last, (), ())
    parts = module.RecurrentLearner(None, lambda meta, data: inputs_of(data, inputs), None, None)
    networks = known_networks()
    meta = module.first_meta(jax.random.key(0), WithoutParameters(networks), Config(), Hyper())
    unit = jnp.asarray([0.0, 1.0])
    meta = meta._replace(value_scale=unit)
    shown = module.Shown(jnp.ones((2, 1)), jnp.asarray([False, True]), jnp.full((2, 2), 3.0))
    config = Config(num_episodes=3, decoder_reads=decoder_reads)
    how = dict(parts=parts, networks=networks, config=config)
    return jax.jit(partial(module.prepared, **how))(meta, Hyper(**numbers), data, shown)


class WithoutParameters:
    """Networks whose parameters are empty."""

    def __init__(self, networks):
        self.networks = networks

    def init(self, key):
        return dict.fromkeys(self.networks._fields, ())


def inputs_of(data, inputs):
    """The inputs of the trial whose second step is the data's."""
    which = jnp.where(data.last[2], 0, 1)
    return jax.tree.map(lambda x: x[which], inputs)


def test_both_policies_get_their_steps_their_rewards_and_their_z():
    numbers = dict(exploration_cost=0.25, discount=0.5, gae_lambda=1.0)
    meta, batch, metrics = prepared(**numbers)
    explorer, exploiter = batch.explorer, batch.exploiter
    assert explorer.counted.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert batch.read.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert explorer.inputs.obs[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert exploiter.counted.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert exploiter.inputs.obs[0, :3, 0].tolist() == [3, 4, 5]
    assert exploiter.inputs.obs[1, :5, 0].tolist() == [4, 5, 6, 7, 8]
    assert batch.begins.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.z.tolist() == [[3, 3], [4, 4]]  # of the first step after the exploration
    # Distances at t are (t - 1)² + (t - 2)²: 5, 1, 1, 5, 13. Values are 0, and the spread is the batch's.
    gains = np.array([[4, 0, -4, 0, 0], [4, 0, -4, -8, 0]]) - 0.25 * np.array(explorer.counted)
    returns = np.zeros((2, 6))
    for t in reversed(range(5)):
        returns[:, t] = gains[:, t] + 0.5 * returns[:, t + 1]
    returns = returns[:, :5]
    some = returns[np.array(explorer.counted)]
    np.testing.assert_allclose(meta.gain_scale, [some.mean(), some.std()], rtol=1e-5)
    np.testing.assert_allclose(explorer.advantage, returns / some.std(), rtol=1e-5)
    counted = np.array(explorer.counted)
    target = ((returns - some.mean()) / some.std())[counted]
    np.testing.assert_allclose(explorer.target[counted], target, rtol=1e-5)
    np.testing.assert_allclose(metrics["information_gain"], np.mean([5 - 5, 5 - 13]))
    # Returns of exploitation end with their episodes. Values are z: the decoder's 3, and 1 + 3.
    returns = np.array([[3 + 0.5 * 4, 4, 5], [4, 5 + 0.5 * (6 + 0.5 * (7 + 0.5 * 8)), 0]])
    spread = float(meta.value_scale[1])
    np.testing.assert_allclose(exploiter.advantage[0, :3] * spread, returns[0] - 3, rtol=1e-5)
    np.testing.assert_allclose(exploiter.advantage[1, :2] * spread, returns[1, :2] - 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["return/told"], 4 + 5 + 6 + 7 + 8)


def test_the_decoder_may_read_what_an_exploiter_tries_that_is_not_told():
    _, batch, _ = prepared()
    assert batch.decoder.obs.shape == (2, 5, 1)
    numbers = dict(decoder_reads="trial", discount=0.5, gae_lambda=1.0, exploration_cost=0.25)
    _, batch, _ = prepared(**numbers)
    assert batch.decoder.obs[0, :, 0].tolist() == list(range(12))
    assert batch.read.tolist() == [[1] * 6 + [0] * 6, [1] * 5 + [0] * 7]
    # f is (1, 2), and g at step t is (t, t).
    errors = [(t - 1) ** 2 + (t - 2) ** 2 for t in (*range(6), *range(5))]
    whole, f = module.whole_minibatch(batch), jnp.tile(jnp.asarray([1.0, 2.0]), (2, 1))
    error = module.decoder_error({"decoder": ()}, f, batch, whole, networks=known_networks())
    np.testing.assert_allclose(error, np.mean(errors), rtol=1e-6)


def test_no_value_crosses_the_end_of_an_episode():
    """λ = 0: a reward and the next step's value, 3 or 4, in the episode."""
    meta, batch, _ = prepared(discount=0.5, gae_lambda=0.0)
    spread = float(meta.value_scale[1])
    first = np.array([3 + 0.5 * 3 - 3, 4 - 3, 5 - 3])
    second = np.array([4 - 4, 5 + 2 - 4, 6 + 2 - 4, 7 + 2 - 4, 8 - 4])
    np.testing.assert_allclose(batch.exploiter.advantage[0, :3] * spread, first, atol=1e-5)
    np.testing.assert_allclose(batch.exploiter.advantage[1, :5] * spread, second, atol=1e-5)


def test_an_episode_of_exploitation_begins_without_a_past():
    inputs, counted = trials_of_three_episodes()
    begins = module.episodes(inputs, counted).begins
    shown = module.with_latent(inputs, begins, jnp.full((2, 12, 2), 7.0))
    assert shown.reset[0, :6].tolist() == [1, 0, 0, 1, 0, 1]
    assert shown.past[0, :6, 0].tolist() == [0, 1, 1, 0, 1, 0]
    assert shown.time[0, 1].tolist() == [0, 1, 7, 7]


@lru_cache
def made(config, *, num_tasks, family):
    """In double precision: networks, parts and trials of ``num_tasks`` tasks, prepared for learning."""
    networks = module.networks_of(family, config)
    parts = module._learner_of(family, config, networks)

    @jax.jit
    def prepared():
        meta = module.first_meta(jax.random.key(0), networks, config, Hyper())
        meta = meta._replace(reward_scale=jnp.asarray(0.5))
        drawn = tasks.sample_tasks(jax.random.key(1), family, num_tasks, split="train")
        how = dict(family=family, parts=parts, networks=networks)
        recorded, shown = module.trials(jax.random.key(2), meta, drawn, **how)
        how = dict(parts=parts, networks=networks, config=config)
        meta, batch, _ = module.prepared(meta, meta.hyper, recorded, shown, **how)
        return meta, batch

    return networks, *prepared()


def test_gradients_go_where_the_paper_sends_them(x64, family):
    """The bottleneck learns from the exploiter's loss and its own size, the decoder from its error alone."""
    networks, meta, batch = made(Config(**SMALL), num_tasks=8, family=family)
    assert batch.shown.told.any()

    @jax.jit
    @jax.grad
    def slope(params, hyper):
        keys = jax.random.split(jax.random.key(3), 8)
        whole = module.whole_minibatch(batch)
        return module.all_losses(params, keys, batch, hyper, whole, networks=networks)[0]

    def gradient(**numbers):
        return slope(meta.params, as_arrays(meta.hyper._replace(**numbers)))

    norm = lambda tree: sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tree))  # noqa: E731
    without = gradient(decoder_cost=0.0, bottleneck_cost=0.0)
    assert norm(without["decoder"]) == 0
    assert all(norm(without[x]) > 0 for x in ("bottleneck", "explorer", "exploiter"))
    decoder = gradient(bottleneck_cost=0.0)
    assert norm(decoder["decoder"]) > 0
    for name in ("bottleneck", "explorer", "exploiter"):
        jax.tree.map(np.testing.assert_array_equal, decoder[name], without[name])
    # Small outputs cost nothing.
    small = gradient(free_norm=1e6, decoder_cost=0.0)
    jax.tree.map(np.testing.assert_array_equal, small["bottleneck"], without["bottleneck"])
    large = gradient(free_norm=0.0, decoder_cost=0.0)
    assert norm(jax.tree.map(jnp.subtract, large["bottleneck"], without["bottleneck"])) > 0


@pytest.mark.parametrize("num_episodes", [2, 3])
def test_what_acts_is_what_is_learned_from(x64, family, num_episodes):
    """Step by step the learner acts by the policies that a pass over the cut trials gives, told or not."""
    config = Config(**SMALL | dict(num_episodes=num_episodes))
    networks, meta, batch = made(config, num_tasks=8, family=family)
    told = batch.shown.told
    assert 0 < told.sum() < 8
    f = networks.bottleneck.apply(meta.params["bottleneck"], batch.shown.task)
    inputs = module.with_latent(batch.exploiter.inputs, batch.begins, module._told(f, batch))
    for name, part, x in (
        ("explorer", batch.explorer, batch.explorer.inputs),
        ("exploiter", batch.exploiter, inputs),
    ):
        unroll = jax.vmap(getattr(networks, name).unroll, (None, 0, 0))
        policy, _ = unroll(meta.params[name], part.data.memory.state, x)
        counted = part.counted
        assert counted.any(axis=1).all()
        log_prob = policy.log_prob(part.data.action)
        np.testing.assert_allclose(log_prob[counted], part.data.log_prob[counted], rtol=1e-6)


def test_a_half_of_the_tasks_is_told(family):
    config = Config(**SMALL)
    networks = module.networks_of(family, config)
    meta = module.first_meta(jax.random.key(0), networks, config, Hyper())

    def spied(key, meta, drawn):
        """Two trials of a task, which show what the exploiter is told."""
        told, latent = (jnp.tile(x, (2, *[1] * x.ndim)) for x in (meta.told, meta.latent))
        return Trajectory((), told, latent, jnp.zeros((2, 1)), (), (), (), ())

    parts = module._learner_of(family, config, networks)._replace(trials=spied)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 400, split="train")
    how = dict(family=family, parts=parts, networks=networks)
    data, shown = module.trials(jax.random.key(2), meta, drawn, **how)
    assert 320 < shown.told.sum() < 480
    np.testing.assert_array_equal(data.action, shown.told)
    vectors = jnp.repeat(jax.vmap(family.task_vector)(drawn), 2, axis=0)
    np.testing.assert_array_equal(shown.task, vectors)
    f = networks.bottleneck.apply(meta.params["bottleneck"], vectors)
    np.testing.assert_allclose(data.log_prob, f + shown.noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jnp.std(shown.noise), 0.1, rtol=0.1)


@pytest.mark.slow
def test_a_step_learns(family):
    algorithm = dream(family, Config(**SMALL, num_streams=2))
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    state, metrics = step(jax.random.key(2), state, drawn)
    state, metrics = step(jax.random.key(3), state, drawn)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert metrics["env_steps"] == 2 * 2 * 2 * 5
    assert not state.meta.told
    assert jnp.all(state.meta.latent == 0)


@pytest.mark.parametrize("broken", thorough([1, 2], (1,)))
def test_a_task_that_is_no_number_does_not_spread(family, broken):
    """Its trials are left out, for what they are told would enter the bottleneck's gradient. The other task's are learned from."""
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    assert jnp.any(drawn.ends[0] != drawn.ends[1])

    def identity(task):
        is_broken = jnp.any(jnp.all(task.ends[None] == drawn.ends[:broken], axis=(1, 2)))
        return jnp.where(is_broken, jnp.nan, task.ends.reshape(-1).astype(float))

    algorithm = dream(dataclasses.replace(family, identity=identity), Config(**SMALL))
    state = algorithm.init(jax.random.key(0))
    step, before = jax.jit(algorithm.step), jax.flatten_util.ravel_pytree(state.meta.params)[0]
    for key in (4, 5):  # the broken task is told, and it is not
        after, metrics = step(jax.random.key(key), state, drawn)
        assert metrics["skipped_updates"] == (broken == 2)
        params = jax.flatten_util.ravel_pytree(after.meta.params)[0]
        assert jnp.all(jnp.isfinite(params))
        assert jnp.any(params != before) == (broken == 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_episodes=1), "num_episodes=1 must be at least 2"),
        (dict(remembers="episode"), "remembers='episode' has no effect in DREAM"),
        (dict(latent_size=0), "latent_size=0 must be at least 1"),
        (dict(decoder_reads="all"), "decoder_reads='all' is unknown"),
        (dict(encoder_sizes=(0,)), "encoder_sizes=0 must be at least 1"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.slow
def test_actions_may_be_continuous():
    family = tasks.make("navigation", horizon=3)
    algorithm = dream(family, Config(**SMALL))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    state = algorithm.init(jax.random.key(0))
    _, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    assert metrics["skipped_updates"] == 0


def clue_family():
    """Two tasks. An episode has two steps: action 1 shows the task for a cost; the second step's right action earns 1.

    In one episode to look costs more than it brings: 1 for the half of the time that a guess is wrong.
    """

    def reset(key, task):
        return jnp.zeros(2), jnp.zeros((), jnp.int32)

    def step(key, state, action, task):
        looks = (state == 0) & (action == 1)
        seen = jnp.where(looks, 2.0 * task - 1.0, 0.0)
        obs = jnp.stack([(state + 1).astype(float), seen])
        right = (state == 1) & (action == task.astype(jnp.int32))
        reward = right.astype(float) - jnp.where(looks, 0.75, 0.0)
        return obs, state + 1, reward, state == 1

    from gymnax.environments import spaces

    return tasks.from_functions(
        reset,
        step,
        observation_space=spaces.Box(-2.0, 2.0, (2,), jnp.float32),
        action_space=spaces.Discrete(2),
        horizon=2,
        train=lambda key: jax.random.bernoulli(key).astype(float),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_it_learns_to_look_for_the_sake_of_the_next_episode():
    """The best return of the second episode is 1, of a guess 1/2. Three of eight seeds stay at a guess; no guess is better."""
    from jaxmeta.runs import training

    family, num_seeds = clue_family(), 4
    sizes = dict(memory_size=32, encoder_sizes=(32,), bottleneck_scale=1.6)
    config = Config(**sizes, decoder_reads="trial")
    hyper = Hyper(learning_rate=3e-3, anneal_updates=300, entropy_cost=0.2, exploration_entropy=0.3)
    algorithm = dream(family, config, hyper)
    plan = training.Config(meta_updates=300, num_tasks=64)
    run = training.train_population(algorithm, family, plan, num_seeds=num_seeds)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 200, split="test")
    how = dict(learner=algorithm.learner, env=family.env, num_steps=algorithm.lifetime.num_steps)

    def second(meta):
        trials = evaluation.trials(jax.random.key(2), meta, drawn, **how)
        return evaluation.episode_returns(trials, 2)[:, 1].mean()

    metas = jax.tree.map(lambda x: x[0], run.state.meta)
    returns = jax.jit(jax.vmap(second))(metas)
    assert returns.shape == (num_seeds,)
    assert np.max(returns) > 0.95, returns
