import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import dream as module
from jaxmeta.algorithms.dream import Config, Hyper, dream
from jaxmeta.learners import action_values
from jaxmeta.networks.actor_critic import Inputs

pytest.importorskip("flashbax")
SMALL = dict(
    memory_size=4,
    hidden_sizes=(4,),
    encoder_sizes=(4,),
    bottleneck_sizes=(4,),
    latent_size=3,
    num_epochs=1,
    num_minibatches=1,
    replay_trials=8,
    replayed_trials=2,
)


@pytest.fixture(scope="module")
def family():
    return tasks.make("bus", world="map", horizon=5)


def a_batch():
    """A trial of an episode of three steps, one of two, one of one and two steps after its last episode."""
    first = jnp.asarray([1, 0, 0, 1, 0, 1, 0, 0], float)
    counted = jnp.asarray([1, 1, 1, 1, 1, 1, 0, 0], bool)
    inputs = Inputs(
        obs=jnp.arange(8.0)[:, None],
        past=jnp.ones((8, 2)),
        time=jnp.stack([first, jnp.arange(8.0)], axis=1),
        reset=jnp.arange(8) == 0,
    )
    batch = module.Batch(inputs, jnp.zeros(8, jnp.int32), jnp.arange(8.0), counted, jnp.ones(2))
    return jax.tree.map(lambda x: x[None], batch)


def test_episodes_are_told_apart():
    of = module.episodes(a_batch())
    assert of.explores[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert of.exploits[0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert of.begins[0].tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert of.read[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert module._last(of.begins)[0].tolist() == [0, 0, 1, 0, 1, 0, 0, 0]


def test_information_gain_is_the_fall_of_the_error_and_sums_up_to_the_whole():
    distance = jnp.asarray([[5.0, 4.0, 4.5, 1.0, 9.0]])
    explores = jnp.asarray([[1, 1, 1, 0, 0]], bool)
    gain = module.information_gain(distance, explores)
    assert gain.tolist() == [[1.0, -0.5, 3.5, 0.0, 0.0]]
    assert gain.sum() == 5 - 1  # that before the first step less that after the last


def views(params=None):
    """What networks of known outputs make of `a_batch`: f = (1, 2), g at step t is (t, t)."""
    constant = lambda x: lambda params, *_: x  # noqa: E731
    networks = module.Networks(
        bottleneck=module.Network(None, lambda params, x: jnp.asarray([[1.0, 2.0]])),
        decoder=module.ActionValues(
            None, lambda: (), None, lambda params, state, inputs: jnp.tile(inputs.obs, (1, 2))
        ),
        explorer=module.ActionValues(None, lambda: (), None, constant(jnp.ones((8, 2)))),
        exploiter=module.ActionValues(
            None, lambda: (), None, lambda params, state, inputs: inputs.time[:, -2:]
        ),
    )
    nothing = dict.fromkeys(networks._fields, ())
    return networks, nothing


def test_the_explorer_s_rewards_and_what_the_exploiter_sees_by_hand():
    networks, params = views()
    hyper, batch = Hyper(exploration_cost=0.25), a_batch()
    seen = module._views(params, batch, hyper, networks)
    distance = [(t - 1) ** 2 + (t - 2) ** 2 for t in range(8)]  # 5, 1, 1, 5, ...
    np.testing.assert_allclose(seen.distance[0], distance)
    np.testing.assert_allclose(seen.explorer.reward[0], [4 - 0.25, -0.25, -4 - 0.25, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(seen.gain.sum(), distance[0] - distance[3])
    assert jnp.array_equal(seen.explorer.counted, module.episodes(batch).explores)
    z = module._read(seen.g, module.episodes(batch))
    assert z.tolist() == [[3.0, 3.0]]
    q, exploiter = module._exploiter(params, batch, z, networks)
    assert jnp.all(q == 3)
    assert exploiter.reward[0].tolist() == [0, 0, 0, 3, 4, 5, 0, 0]
    assert exploiter.inputs.reset[0].tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert exploiter.inputs.past[0, :, 0].tolist() == [0, 1, 1, 0, 1, 0, 1, 1]


def test_no_return_crosses_the_end_of_an_episode():
    """λ = 1 and values of 0: the discounted rewards to come in the episode."""
    networks, params = views()
    batch = a_batch()
    _, exploiter = module._exploiter(params, batch, jnp.zeros((1, 2)), networks)
    hyper = Hyper(discount=0.5, trace_lambda=1.0)
    last = module._last(module.episodes(batch).begins)
    q, scale = jnp.zeros((1, 8, 2)), jnp.asarray([0.0, 1.0])
    returns = action_values.lambda_returns(q, exploiter, scale, hyper, "peng", last=last)
    np.testing.assert_allclose(returns[0, 3:6], [3 + 0.5 * 4, 4, 5])
    # Nor does a bootstrapped one.
    hyper = hyper._replace(trace_lambda=0.0)
    q = jnp.full((1, 8, 2), 10.0)
    returns = action_values.lambda_returns(q, exploiter, scale, hyper, "peng", last=last)
    np.testing.assert_allclose(returns[0, 3:6], [3 + 5, 4, 5])


def test_gradients_go_where_the_paper_sends_them(x64, family):
    """The bottleneck learns from the exploiter's values and its own size, the decoder from its error alone."""
    config = Config(**SMALL)
    networks = module.networks_of(family, config)
    meta = module.first_meta(jax.random.key(0), networks, config, Hyper())
    parts = module._learner_of(family, config, networks)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
    told = jax.vmap(family.task_vector)(drawn)
    meta = meta._replace(hyper=meta.hyper._replace(epsilon=jnp.asarray(1.0)))
    recorded = module.trials(jax.random.key(2), meta, drawn, told, parts=parts, networks=networks)
    data, counted = module.counted_steps(recorded, 2)
    batch = module.batch_of(meta, data, counted, told, parts=parts)

    def gradient(**numbers):
        hyper = meta.hyper._replace(**numbers)
        how = dict(networks=networks, config=config, scales=(jnp.array([0.0, 1.0]),) * 2)
        keys = jax.random.split(jax.random.key(3), 4)
        return jax.grad(
            lambda x: module.all_losses(
                x, keys, batch, hyper, module.whole_minibatch(batch), **how
            )[0]
        )(meta.params)

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


def test_what_acts_is_what_is_learned_from(x64, family):
    """Step by step the learner chooses by the values that a pass over the whole trial gives."""
    config = Config(**SMALL | dict(num_episodes=3))
    networks = module.networks_of(family, config)
    meta = module.first_meta(jax.random.key(0), networks, config, Hyper(epsilon=0.3))
    meta = meta._replace(reward_scale=jnp.asarray(0.5))
    parts = module._learner_of(family, config, networks)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 6, split="train")
    data = parts.trials(jax.random.key(2), meta, drawn)
    counted = jnp.ones(data.reward.shape, bool)
    told = jax.vmap(family.task_vector)(drawn)
    batch = module.batch_of(meta, data, counted, told, parts=parts)
    of = module.episodes(batch)
    seen = module._views(meta.params, batch, meta.hyper, networks)
    z = module._read(seen.g, of)
    q, _ = module._exploiter(meta.params, batch, z, networks)
    q = jnp.where(of.explores[..., None], seen.explorer_q, q)
    policy = module.epsilon_greedy(q, 0.3)
    np.testing.assert_allclose(policy.log_prob(data.action), data.log_prob, rtol=1e-6)
    assert jnp.any(of.read, axis=1).all()
    # What is told takes the decoder's place.
    latent = jnp.full(3, 2.0)
    given = meta._replace(told=jnp.asarray(True), latent=latent)
    data = parts.trials(jax.random.key(2), given, drawn)
    batch = module.batch_of(meta, data, counted, told, parts=parts)
    of = module.episodes(batch)
    q, _ = module._exploiter(meta.params, batch, jnp.tile(latent, (6, 1)), networks)
    chosen = module.epsilon_greedy(q, 0.3).log_prob(data.action)
    np.testing.assert_allclose(chosen[of.exploits], data.log_prob[of.exploits], rtol=1e-6)


def test_half_of_the_trials_are_told(family):
    config = Config(**SMALL)
    networks = module.networks_of(family, config)
    meta = module.first_meta(jax.random.key(0), networks, config, Hyper())
    seen = []

    def spied(key, meta, drawn):
        seen.append((meta.told, meta.latent))
        return {"told": meta.told[None], "z": meta.latent[None]}

    parts = module._learner_of(family, config, networks)._replace(trials=spied)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 400, split="train")
    told = jax.vmap(family.task_vector)(drawn)
    data = module.trials(jax.random.key(2), meta, drawn, told, parts=parts, networks=networks)
    assert 160 < data["told"].sum() < 240
    f = networks.bottleneck.apply(meta.params["bottleneck"], told)
    np.testing.assert_allclose(jnp.std(data["z"] - f), 0.1, rtol=0.1)
    keys = jax.random.split(jax.random.key(3), 400)
    z = jax.vmap(module.latent, (0, 0, 0, None))(keys, f, jnp.zeros_like(f), 0.1)
    assert 160 < jnp.sum(jnp.all(z == 0, axis=1)) < 240


def test_a_step_on_replay_learns_and_broken_trials_change_nothing(family):
    algorithm = dream(family, Config(**SMALL, num_streams=2))
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    state, metrics = step(jax.random.key(2), state, drawn)
    state, metrics = step(jax.random.key(3), state, drawn)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert metrics["replay_trials"] == 8
    assert metrics["env_steps"] == 2 * 2 * 2 * 5
    assert not state.meta.told
    assert jnp.all(state.meta.latent == 0)


def noisy(family):
    """A family whose tasks hold numbers, which may be none."""
    return dataclasses.replace(family, identity=lambda task: jnp.full(3, jnp.nan))


def test_a_task_that_is_no_number_does_not_spread(family):
    """Its trials are broken only if they hold such numbers; what it is told must not enter the bottleneck's gradient."""
    algorithm = dream(noisy(family), Config(**SMALL))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    state = algorithm.init(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    assert metrics["skipped_updates"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.meta.params, state.meta.params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_episodes=1), "num_episodes=1 must be at least 2"),
        (dict(remembers="episode"), "remembers='episode' has no effect in DREAM"),
        (dict(latent_size=0), "latent_size=0 must be at least 1"),
        (dict(replay_trials=0), "replay_trials=0 must be at least 1"),
        (dict(replay_trials=4, replayed_trials=5), "replayed_trials=5 must be"),
        (dict(trace="retrace"), "trace='retrace'"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_actions_must_be_discrete():
    with pytest.raises(ValueError, match="dream needs a Discrete space"):
        dream(tasks.make("navigation"))


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
def test_it_learns_to_look_for_the_sake_of_the_next_episode():
    """The best return of the second episode is 1, of a guess 1/2."""
    family = clue_family()
    config = Config(memory_size=8, num_epochs=1, num_minibatches=4, replay_trials=512)
    hyper = Hyper(learning_rate=5e-3, epsilon_updates=100, anneal_updates=300)
    algorithm = dream(family, config, hyper)
    from jaxmeta.runs import training

    run = training.train(algorithm, family, training.Config(meta_updates=300, num_tasks=32))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 200, split="test")
    how = dict(learner=algorithm.learner, env=family.env, num_steps=algorithm.lifetime.num_steps)
    trials = evaluation.trials(jax.random.key(2), run.state.meta, drawn, **how)
    returns = evaluation.episode_returns(trials, 2).mean(0)
    assert returns[1] > 0.95
