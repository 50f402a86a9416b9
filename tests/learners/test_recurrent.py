import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import checks, learners, rollouts, tasks
from jaxmeta.algorithms import recurrent_q, rl2, varibad
from jaxmeta.learners.recurrent import TrialMemory, trial_estimates
from jaxmeta.learners.trial_gradients import Hyper, Loss
from jaxmeta.meta_updates.outer_loop import outer_optimizer
from jaxmeta.networks.actor_critic import ActorCritic, joined
from jaxmeta.networks.distributions import Categorical
from jaxmeta.tasks.bandits import BanditParams
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import TimeStep, Trajectory
from tests.probes import Counter, CounterParams, learned_in_units, thorough

HORIZON, EPISODES = 4, 3


@pytest.fixture(scope="module")
def family():
    """Episodes that terminate before their time limit, with a reward that names the task."""

    def sample(key):
        return CounterParams(number=jax.random.normal(key), terminate_at=3, truncate_at=HORIZON)

    return TaskFamily("counter", Counter(), HORIZON, sample, sample, sample)


def trial(family, algorithm, key=0):
    """``(meta, data [T])`` of one trial."""
    setup = rollouts.Setup(algorithm.learner, family.env, 1, num_steps=EPISODES * HORIZON)

    @jax.jit
    def act(key):
        meta = algorithm.init(jax.random.key(0)).meta._replace(reward_scale=jnp.asarray(0.5))
        task = family.train(jax.random.key(1))
        history = rollouts.lifetime(key, meta, task, setup=setup, num_updates=0)
        return meta, jax.tree.map(lambda x: x[0, 0], history.trajectories)

    return act(jax.random.key(key))


@pytest.mark.parametrize(
    ("memory", "encoder_sizes", "remembers"),
    [
        ("gru", (), "trial"),
        ("lstm", (), "trial"),
        ("linear", (6, 5), "trial"),
        ("transformer", (), "trial"),
        # That each kind forgets where it is told to: `networks/test_recurrent`.
        ("gru", (), "episode"),
        ("transformer", (), "episode"),
    ],
)
def test_what_is_trained_is_what_acted_and_it_remembers_the_trial(
    family, memory, encoder_sizes, remembers
):
    """Log-probabilities of the whole-sequence pass are those of acting. What the first episode paid
    changes what is done in the next, and only where the trial is remembered: a memory that is cleared
    at the end of an episode, or never, fails one of the two."""
    config = rl2.Config(
        num_episodes=EPISODES,
        memory=memory,
        memory_size=8,
        encoder_sizes=encoder_sizes,
        remembers=remembers,
        hidden_sizes=(8,),
    )
    network = rl2.network_of(family, config)
    parts = learners.recurrent_learner(family, config, network)
    algorithm = rl2.rl2(family, config)
    meta, data = trial(family, algorithm)
    # Not the nearly uniform policy of a newborn, which would hide what it looks at.
    params = jax.tree.map(lambda x: 3.0 * np.asarray(x), meta.params)

    @jax.jit
    def log_probs(params, data):
        distribution, v = network.unroll(params, data.memory.state, parts.inputs(meta, data))
        return distribution.log_prob(data.action), distribution.log_probs(), v

    np.testing.assert_allclose(log_probs(meta.params, data)[0], data.log_prob, atol=1e-5)
    _, usual, v = map(np.asarray, log_probs(params, data))
    changed = np.array(data.timestep.reward)
    changed[1] += 2.0  # seen in the first episode
    other = data._replace(timestep=data.timestep._replace(reward=changed))
    _, unusual, other_v = map(np.asarray, log_probs(params, other))
    second_episode = slice(int(np.argmax(data.last)) + 1, None)
    difference = np.max(np.abs(usual - unusual)[second_episode])
    value_difference = np.max(np.abs(v - other_v)[second_episode])
    if remembers == "trial":
        assert difference > 1e-4
        assert value_difference > 1e-4
    else:
        assert difference == value_difference == 0
    assert np.max(np.abs(usual - unusual)[: second_episode.start]) > 1e-4


def test_inputs_show_the_past_and_the_time(family):
    config = rl2.Config(num_episodes=EPISODES, memory_size=4)
    parts = learners.recurrent_learner(family, config, rl2.network_of(family, config))
    meta, data = trial(family, rl2.rl2(family, config))
    inputs = jax.jit(parts.inputs)(meta, data)
    num_steps = EPISODES * HORIZON
    assert parts.lifetime.num_steps == num_steps
    assert inputs.reset.tolist() == [True] + [False] * (num_steps - 1)
    inputs, data = jax.tree.map(np.asarray, (inputs, data))
    assert np.all(inputs.past[0] == 0)  # nothing was done before birth
    np.testing.assert_array_equal(inputs.past[1:, :3], np.eye(3)[data.action[:-1]])
    # Across the ends of episodes too: the last reward of an episode is the one that tells most.
    np.testing.assert_allclose(inputs.past[1:, 3], data.reward[:-1] / 0.5)
    unknown = jax.jit(parts.inputs)(meta._replace(reward_scale=jnp.zeros(())), data)
    assert np.all(np.asarray(unknown.past)[:, 3] == 0)  # before any batch no reward is in units
    assert np.sum(data.last) > 1
    np.testing.assert_array_equal(inputs.time[:, 0], data.timestep.first)
    np.testing.assert_allclose(inputs.time[:, 1], np.arange(num_steps) / num_steps)
    np.testing.assert_array_equal(inputs.obs, data.timestep.obs)

    blind = rl2.Config(num_episodes=EPISODES, memory_size=4, sees_time=False)
    parts = learners.recurrent_learner(family, blind, rl2.network_of(family, blind))
    assert np.all(np.asarray(jax.jit(parts.inputs)(meta, data).time)[:, 1] == 0)


def test_advantages_are_of_the_whole_trial():
    reward, v = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    gamma, lambda_ = 0.9, 0.7
    estimates = functools.partial(trial_estimates, discount=gamma, lambda_=lambda_)
    found, returns = map(np.asarray, jax.jit(estimates)(reward, v))
    delta = [reward[t] + gamma * (v[t + 1] if t < 6 else 0) - v[t] for t in range(7)]
    expected = [sum((gamma * lambda_) ** (k - t) * delta[k] for k in range(t, 7)) for t in range(7)]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(returns, found + v)


NUM_TRIALS = 200_000


@pytest.mark.parametrize("objective", [learners.trial_gradients.ppo, learners.trial_gradients.a2c])
def test_a_step_climbs_the_return_of_the_whole_trial(objective):
    """Two pulls, each an episode of its own: of an arm that pays half the time and of one whose mean is
    U(0, 1), by a policy that is a table over histories. The step of plain gradient ascent is the exact
    gradient, to four standard errors. That of the first pull is what it teaches the second, in the next
    episode: both arms pay alike at first."""
    bandit = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=1)

    def sample(key):
        return BanditParams(mean=jnp.array([0.5, jax.random.uniform(key)]))

    family = dataclasses.replace(bandit, train=sample)
    # What a history is: nothing, or the first arm and its reward. An unknown arm that paid is kept.
    logits = jnp.array([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2], [1.5, -1.5], [-1.5, 1.5]])

    def index(inputs):
        arm, reward = jnp.argmax(inputs.past[:2]), inputs.past[2]
        return jnp.where(inputs.reset, 0, 1 + 2 * arm + reward.astype(jnp.int32))

    def unroll(params, state, inputs):
        rows = params[jax.vmap(index)(inputs)]
        return Categorical(rows), jnp.zeros(rows.shape[0])

    network = ActorCritic(
        init=lambda key: logits,
        initial=lambda: (),
        step=lambda params, state, inputs: (Categorical(params[index(inputs)]), ()),
        unroll=unroll,
    )
    config = learners.trial_gradients.Config(
        num_episodes=2, num_epochs=1, num_minibatches=1, normalize=False
    )
    # Advantages are the returns to come; what is not wanted in them is switched off.
    hyper = Hyper(
        discount=1.0,
        gae_lambda=1.0,
        entropy_cost=0.0,
        value_cost=0.0,
        max_grad_norm=1e9,
        learning_rate=1.0,
    )
    algorithm = learners.trial_gradients.learn_from_trials(
        family, config, hyper, network, Loss(objective), optax.sgd
    )

    def histories():
        """``(row of the second pull, first arm, first reward, its probability, means of the second pull)``."""
        for arm, reward in itertools.product((0, 1), (0, 1)):
            unknown = 0.5 if arm == 0 else (1 / 3, 2 / 3)[reward]
            yield 1 + 2 * arm + reward, arm, reward, 0.5, np.array([0.5, unknown])

    def expected_return(params):
        pi = jax.nn.softmax(params)
        return 0.5 + sum(pi[0, arm] * p * (pi[row] @ mean) for row, arm, _, p, mean in histories())

    def second_moment():
        """Of a trial's score times the return to come, an entry of the table each."""
        pi = np.asarray(jax.nn.softmax(logits))
        total = np.zeros(logits.shape)
        for row, arm, reward, p, means in histories():
            for then, paid in itertools.product((0, 1), (0, 1)):
                mean = means[then] if paid else 1 - means[then]
                probability = pi[0, arm] * p * pi[row, then] * mean
                first = (np.eye(2)[arm] - pi[0]) * (reward + paid)
                second = (np.eye(2)[then] - pi[row]) * paid
                total[0] += probability * first**2
                total[row] += probability * second**2
        return total

    state = algorithm.init(jax.random.key(0))
    state = state._replace(meta=state.meta._replace(reward_scale=jnp.ones(())))
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, NUM_TRIALS, split="train"))(
        jax.random.key(1)
    )
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    # The loss is a mean over the two steps of a trial, of advantages in units of the returns' spread.
    found = 2 * np.asarray(after.meta.params - logits) * float(after.meta.value_scale[1])
    value, exact = jax.jit(jax.value_and_grad(expected_return))(logits)
    exact, error = np.asarray(exact), np.sqrt(second_moment() / NUM_TRIALS)
    assert np.max(np.abs(found - exact) / error) < 4
    # Nothing else passes: neither no step, nor one that looks at the first episode alone.
    assert np.max(np.abs(exact[0]) / error[0]) > 8
    assert np.max(np.abs(exact[1:]) / error[1:]) > 8
    trial_return = float(metrics["return/trial"])
    assert abs(trial_return - float(value)) < 4 * 0.8 / np.sqrt(NUM_TRIALS)


def test_the_scale_of_values_is_the_first_batch_s_and_then_moves_slowly():
    move = learners.recurrent.moved_value_scale
    returns = jnp.array([[1.0, 3.0], [5.0, 7.0], [1e6, -1e6]])
    steps = jnp.array([[True, True], [True, True], [False, False]])
    born, old = jnp.zeros(2), jnp.array([2.0, 1.0])
    np.testing.assert_allclose(move(born, returns, steps), [4.0, 5**0.5], rtol=1e-6)
    moved = move(old, returns, steps)
    np.testing.assert_allclose(moved, [2.2, 1 + 0.1 * (5**0.5 - 1)], rtol=1e-6)
    np.testing.assert_array_equal(move(old, returns, ~steps & False), old)
    # Returns that are all alike but for rounding have no spread, whatever the unit.
    alike = jnp.float32(1 / 3) * (1 + jnp.array([[0.0, 1e-7], [2e-7, -1e-7]]))
    for unit in (1e-6, 1.0, 1e6):
        mean, spread = move(born, unit * alike, jnp.ones((2, 2), bool))
        np.testing.assert_allclose(mean, unit / 3, rtol=1e-6)
        assert spread == 0
    assert move(jnp.array([1 / 3, 0.0]), returns, steps)[1] > 2  # and the next batch's is taken


PAID = {
    "RL², PPO": (rl2, dict(memory_size=4, num_epochs=2, num_minibatches=2)),
    "RL², A2C on counts": (rl2, dict(memory="counts", loss="a2c", normalize=False)),
    "VariBAD": (
        varibad,
        dict(decodes=("rewards", "states"), memory_size=4, hidden_sizes=(4,), latent_size=2),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", PAID)
def test_the_unit_of_rewards_changes_nothing(x64, variant):
    """Three meta-updates: the same parameters, to the bit where the unit is a power of two."""
    module, settings = PAID[variant]
    defaults = dict(num_episodes=2, num_epochs=1, num_minibatches=1)
    config = module.Config(**defaults | settings)
    plain = tasks.make("tabular", num_states=3, num_actions=2, horizon=3)

    algorithm = getattr(module, module.__name__.rsplit(".")[-1])
    learned = learned_in_units(lambda family: algorithm(family, config), plain, 4)
    usual, reports = learned(1.0)
    assert jnp.all(reports["skipped_updates"] == 0)
    for unit, tolerance in ((1024.0, 0.0), (1e-3, 1e-7)):
        state, metrics = learned(unit)
        meta = state.meta._replace(
            value_scale=np.asarray(state.meta.value_scale) / unit,
            reward_scale=np.asarray(state.meta.reward_scale) / unit,
        )
        metrics |= {name: np.asarray(metrics[name]) / unit for name in metrics if "return" in name}
        found = jax.tree.leaves((state._replace(meta=meta), metrics))
        for x, y in zip(found, jax.tree.leaves((usual, reports)), strict=True):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-3 * tolerance)


def on_recorded(monkeypatch, make):
    """The algorithm that ``make()`` makes, given trials ``[B, T]`` in the place of tasks to act in."""
    whole = learners.recurrent.recurrent_learner

    def without_acting(*arguments):
        return whole(*arguments)._replace(trials=lambda key, meta, data: data)

    monkeypatch.setattr(learners.trial_gradients, "recurrent_learner", without_acting)
    monkeypatch.setattr(checks, "batch", lambda *arguments: None)  # they are no tasks
    return make()


@pytest.mark.slow
@pytest.mark.parametrize("module", [rl2, varibad])
def test_what_does_not_count_changes_nothing(x64, monkeypatch, module):
    """Trials of three episodes that end after nine steps of twelve, and one that is broken: the update is
    the one on the good trials cut to nine steps, whatever the rest holds."""

    def sample(key):
        return CounterParams(number=jax.random.normal(key), terminate_at=3, truncate_at=HORIZON)

    family = TaskFamily("counter", Counter(), HORIZON, sample, sample, sample)
    settings = dict(memory="transformer", memory_size=8, num_epochs=2, num_minibatches=1)
    if module is varibad:
        settings |= dict(memory="linear", decodes=("rewards", "states"), hidden_sizes=(4,))
    config = module.Config(num_episodes=EPISODES, **settings)
    constructor = getattr(module, module.__name__.rsplit(".")[-1])

    def make():
        return constructor(family, config, module.Hyper(learning_rate=1.0), optimizer=optax.sgd)

    parts = learners.recurrent_learner(family, config, make_network(module, family, config))

    @jax.jit
    def begun():
        state = make().init(jax.random.key(0))
        scales = dict(value_scale=jnp.array([0.5, 2.0]), reward_scale=jnp.asarray(2.0))
        state = state._replace(meta=state.meta._replace(**scales))
        drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
        return state, parts.trials(jax.random.key(2), state.meta, drawn)

    state, data = begun()
    step = jax.jit(on_recorded(monkeypatch, make).step)

    data = jax.tree.map(np.asarray, data)
    short = jax.tree.map(lambda x: x[:3, :9], data._replace(memory=()))
    short = short._replace(memory=jax.tree.map(lambda x: x[:3], data.memory))
    expected, usual = step(jax.random.key(3), state, short)
    assert usual["skipped_tasks"] == 0
    moved = jax.tree.map(
        lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y))),
        expected.meta.params,
        state.meta.params,
    )
    assert max(jax.tree.leaves(moved)) > 1e-3

    for tail in (0.0, -50.0, np.nan):

        def spoiled(x, tail=tail):
            x = np.array(x)
            if np.issubdtype(x.dtype, np.floating):
                x[:, 9:], x[3, 4] = tail, np.inf
            return x

        whole = jax.tree.map(spoiled, data._replace(memory=()))._replace(memory=data.memory)
        found, metrics = step(jax.random.key(3), state, whole)
        assert metrics["skipped_tasks"] == 1
        for name in set(usual) - {"skipped_tasks", "env_steps"}:
            np.testing.assert_allclose(metrics[name], usual[name], rtol=1e-10, err_msg=name)
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def make_network(module, family, config):
    if module is varibad:
        return varibad.belief_actor_critic(family, config)[0]
    return rl2.network_of(family, config)


# A policy and a value that are linear in all that is shown.
LINEAR = ActorCritic(
    init=lambda key: {
        "policy": jax.random.normal(key, (8, 3)),
        "value": jax.random.normal(jax.random.fold_in(key, 1), (8, 1)),
    },
    initial=lambda: (),
    step=lambda params, state, inputs: (Categorical(joined(inputs) @ params["policy"]), state),
    unroll=lambda params, state, inputs: (
        Categorical(joined(inputs) @ params["policy"]),
        (joined(inputs) @ params["value"])[:, 0],
    ),
)


def random_trials(num_trials, num_steps):
    """Of a policy that is some way from any other, ``[B, T]``; episodes end after every third step."""
    rng = np.random.default_rng(0)
    shape = num_trials, num_steps
    last = np.broadcast_to(np.arange(num_steps) % 3 == 2, shape)
    first = np.roll(last, 1, axis=1)
    action = rng.integers(0, 3, shape)
    reward, obs = rng.normal(size=shape), rng.normal(size=(*shape, 2))
    before, earned = (np.roll(x, 1, axis=1) for x in (action, reward))
    log_prob = np.log(rng.uniform(0.2, 0.5, shape))
    memory = TrialMemory((), np.zeros(num_trials, np.int32))
    data = Trajectory(
        TimeStep(obs, before, earned, first),
        *(action, log_prob, reward, np.ones(shape), last, np.roll(obs, -1, axis=1), memory),
    )
    return jax.tree.map(jnp.asarray, data)


@pytest.mark.parametrize("normalize", [True, False])
def test_two_steps_of_ppo_are_those_written_out_by_hand(x64, monkeypatch, family, normalize):
    """In numpy: scales, advantages, targets in the new scale, ratios clipped on their side, the entropy
    that is wanted, all costs annealed, the gradient's norm cut."""
    B, T, E = 5, 9, 2
    hyper = Hyper(
        discount=0.9, gae_lambda=0.8, learning_rate=0.3, anneal_updates=4.0, max_grad_norm=0.4,
        clip=0.1, entropy_cost=0.2, value_cost=0.7,
    )  # fmt: skip
    config = learners.trial_gradients.Config(
        num_episodes=E, num_epochs=2, num_minibatches=1, normalize=normalize
    )

    def make():
        return learners.trial_gradients.learn_from_trials(
            family, config, hyper, LINEAR, Loss(learners.trial_gradients.ppo), optax.sgd
        )

    data = random_trials(B, T)
    algorithm = on_recorded(monkeypatch, make)
    state = algorithm.init(jax.random.key(0))
    mean, spread, unit = 0.7, 2.0, 0.5
    scales = dict(value_scale=jnp.array([mean, spread]), reward_scale=jnp.asarray(unit))
    state = state._replace(
        meta=state.meta._replace(**scales), num_updates=jnp.asarray(1, jnp.int32)
    )
    after, metrics = jax.jit(algorithm.step)(jax.random.key(1), state, data)

    data = jax.tree.map(np.asarray, data)
    steps = np.arange(T) < 3 * E
    x = np.zeros((B, T, 8))
    x[..., :2] = data.timestep.obs
    x[..., 2:5] = np.eye(3)[data.timestep.action]
    x[..., 5] = data.timestep.reward / unit
    x[:, 0, 2:6] = 0.0
    x[..., 6] = data.timestep.first
    x[..., 7] = np.arange(T) / (E * HORIZON)
    policy, value = (np.asarray(state.meta.params[name]) for name in ("policy", "value"))

    v = np.where(steps, mean + spread * (x @ value)[..., 0], 0.0)
    reward = np.where(steps, data.reward, 0.0)
    advantage = np.zeros((B, T + 1))
    for t in reversed(range(T)):
        ahead = v[:, t + 1] if t + 1 < T else 0.0
        advantage[:, t] = reward[:, t] + 0.9 * ahead - v[:, t] + 0.9 * 0.8 * advantage[:, t + 1]
    advantage = advantage[:, :T]
    returns = (advantage + v)[:, steps]
    mean += 0.1 * (returns.mean() - mean)
    spread += 0.1 * (returns.std() - spread)
    target = (advantage + v - mean) / spread
    advantage = advantage / spread
    if normalize:
        among = advantage[:, steps]
        advantage = (advantage - among.mean()) / among.std()
    earned = data.reward[:, steps]
    unit += 0.1 * (np.max(np.abs(earned)) - unit)

    left, count = 1 - 1 / 4, B * steps.sum()
    one_hot, clipped = np.eye(3)[data.action], 0
    for _ in range(2):
        logits = x @ policy
        pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        ratio = (pi * one_hot).sum(-1) / np.exp(data.log_prob)
        free = np.where(advantage > 0, ratio < 1.1, ratio > 0.9)
        clipped += (steps & ~free).sum()
        entropy = -(pi * np.log(pi)).sum(-1, keepdims=True)
        gain = (free * ratio * advantage)[..., None] * (one_hot - pi)
        more = -pi * (np.log(pi) + entropy)
        d_logits = np.where(steps[:, None], -gain - left * 0.2 * more, 0.0) / count
        d_v = np.where(steps, 2 * 0.7 * ((x @ value)[..., 0] - target), 0.0) / count
        gradient = np.einsum("bti,bta->ia", x, d_logits), np.einsum("bti,bt->i", x, d_v)[:, None]
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        assert norm > 0.4
        policy = policy - left * 0.3 * gradient[0] * 0.4 / norm
        value = value - left * 0.3 * gradient[1] * 0.4 / norm
    assert 5 < clipped < 2 * count - 5
    np.testing.assert_allclose(after.meta.value_scale, [mean, spread], rtol=1e-10)
    np.testing.assert_allclose(after.meta.reward_scale, unit, rtol=1e-10)
    np.testing.assert_allclose(after.meta.params["policy"], policy, rtol=1e-7)
    np.testing.assert_allclose(after.meta.params["value"], value, rtol=1e-7)
    assert metrics["skipped_updates"] == 0


def test_minibatches_are_drawn_anew_in_every_pass(monkeypatch, family):
    """Each trial once in a pass, in another order in every pass and at every meta-update."""
    seen = []

    def policy(log_ratio, advantage, hyper):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), advantage[:, 0], ordered=True)
        return log_ratio * advantage

    config = learners.trial_gradients.Config(
        num_episodes=2, num_epochs=3, num_minibatches=2, normalize=False
    )

    def make():
        return learners.trial_gradients.learn_from_trials(
            family, config, Hyper(), LINEAR, Loss(policy), optax.sgd
        )

    algorithm = on_recorded(monkeypatch, make)
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    for key in jax.random.split(jax.random.key(1), 2):
        jax.block_until_ready(step(key, state, random_trials(8, 6)))
    jax.effects_barrier()
    passes = np.asarray(seen).reshape(6, 8)
    trials = np.sort(passes[0])
    assert len(set(trials.tolist())) == 8
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.broadcast_to(trials, (6, 8)))
    assert len({tuple(order.tolist()) for order in passes}) == 6
    halves = {frozenset(order[:4].tolist()) for order in passes}
    assert len(halves | {frozenset(trials.tolist()) - half for half in halves}) > 2


@pytest.mark.parametrize(
    ("module", "where"),
    [(rl2, "observed"), pytest.param(varibad, "only as a successor", marks=pytest.mark.slow)],
)
def test_a_broken_trial_does_not_count(family, module, where):
    """A step with a broken task is the step without it, whether the number that is not finite is seen by
    the policy or replaced by the next episode's first observation before it is."""

    class Breaking(Counter):
        def step_env(self, key, state, action, params):
            obs, state, reward, terminated, info = super().step_env(key, state, action, params)
            ends = terminated | self.is_truncated(state, params)
            return jnp.where(ends & (params.number > 50), jnp.nan, obs), state, reward, ends, info

    if where == "observed":
        number = jnp.nan
    else:
        family, number = dataclasses.replace(family, env=Breaking()), 100.0
    config = module.Config(num_episodes=2, memory_size=4, num_epochs=1, num_minibatches=1)
    hyper = module.Hyper(max_grad_norm=1e9)
    constructor = getattr(module, module.__name__.rsplit(".")[-1])
    algorithm = constructor(family, config, hyper, optimizer=optax.sgd)
    step = jax.jit(algorithm.step)
    state, drawn = begun_with(algorithm, family, 4)
    drawn = jax.tree.map(np.array, drawn)
    without = jax.tree.map(lambda x: x[:3].copy(), drawn)
    drawn.number[3] = number
    found, metrics = step(jax.random.key(2), state, drawn)
    expected, usual = step(jax.random.key(2), state, without)
    assert metrics["skipped_tasks"] == 1
    assert metrics["skipped_updates"] == 0
    np.testing.assert_allclose(metrics["return/trial"], usual["return/trial"], rtol=1e-5)
    found, expected, start = (s.meta._replace(hyper=()) for s in (found, expected, state))
    for x, y, old in zip(*map(jax.tree.leaves, (found, expected, start)), strict=True):
        x, y, old = map(np.asarray, (x, y, old))
        np.testing.assert_allclose(x - old, y - old, rtol=2e-3, atol=1e-6)


def begun_with(algorithm, family, num_tasks):
    """A state and tasks, compiled as one."""

    @jax.jit
    def begun():
        drawn = tasks.sample_tasks(jax.random.key(1), family, num_tasks, split="train")
        return algorithm.init(jax.random.key(0)), drawn

    return begun()


def test_minibatches_must_divide_the_trials(family):
    algorithm = rl2.rl2(family, rl2.Config(num_minibatches=4))
    state, drawn = jax.eval_shape(lambda: begun_with(algorithm, family, 6))
    with pytest.raises(
        ValueError, match="num_minibatches=4 must divide the number of trials, .* = 6"
    ):
        jax.eval_shape(algorithm.step, jax.random.key(2), state, drawn)


PROTOCOL = {
    "RL²": (rl2, {}),
    "RL² by A2C, linear": (
        rl2,
        dict(memory="linear", num_streams=2, loss="a2c", num_epochs=1, num_minibatches=1),
    ),
    "no memory": (rl2, dict(memory="none", remembers="episode")),
    "RL², transformer in bfloat16": (
        rl2,
        dict(memory="transformer", memory_size=8, precision="bfloat16"),
    ),
    "VariBAD in bfloat16": (
        varibad,
        dict(decodes=("rewards", "states"), precision="bfloat16"),
    ),
}


def test_acting_and_learning_draw_from_different_keys(family, monkeypatch):
    """Not compiled, so that keys can be read: the one that acts is not the one that is split to learn.

    (JAX's checker of reused keys gives a false alarm for the scan over epochs.)
    """
    whole, split = learners.recurrent.recurrent_learner, jax.random.split
    config = learners.trial_gradients.Config(num_episodes=2, num_minibatches=1, num_epochs=1)
    acted, learned = [], []

    def with_a_spy(*arguments):
        parts = whole(*arguments)

        def trials(key, meta, tasks):
            data = parts.trials(key, meta, tasks)
            acted.append(key)
            return data

        return parts._replace(trials=trials)

    def spy(key, *size):
        if acted and not isinstance(key, jax.core.Tracer):
            learned.append(key)
        return split(key, *size)

    monkeypatch.setattr(learners.trial_gradients, "recurrent_learner", with_a_spy)
    algorithm = learners.trial_gradients.learn_from_trials(
        family, config, Hyper(), LINEAR, Loss(learners.trial_gradients.ppo), optax.sgd
    )
    state, drawn = begun_with(algorithm, family, 2)
    monkeypatch.setattr(jax.random, "split", spy)
    algorithm.step(jax.random.key(2), state, drawn)
    keys = [jax.random.key_data(key).tolist() for key in (*acted, *learned)]
    assert len(acted) == 1
    assert len(learned) >= 1
    assert keys[0] not in keys[1:]


CUT = {
    "RL²": (rl2, dict(memory_size=4, memory="linear")),
    "VariBAD": (varibad, dict(memory_size=4, hidden_sizes=(4,), latent_size=2)),
    "recurrent Q with replay": (
        recurrent_q,
        dict(memory_size=4, replay_trials=16, replayed_trials=8),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", CUT)
def test_chunks_of_trials_change_no_result(x64, family, variant):
    """Two meta-updates, with a broken trial."""
    module, settings = CUT[variant]
    constructor = getattr(module, module.__name__.rsplit(".")[-1])

    def learned(**cut):
        config = module.Config(
            num_episodes=2, num_epochs=2, num_minibatches=2, minibatch_groups=2, **cut, **settings
        )
        algorithm = constructor(family, config)
        state, drawn = begun_with(algorithm, family, 16)
        drawn = drawn.replace(number=np.asarray(drawn.number).copy())
        drawn.number[3] = np.nan
        step = jax.jit(lambda key, state: algorithm.step(key, state, drawn))
        return step(jax.random.key(3), step(jax.random.key(2), state)[0])

    whole, chunks = learned(), learned(trials_per_chunk=4)
    assert whole[1]["skipped_tasks"] == 1
    for x, y in zip(jax.tree.leaves(chunks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", thorough(PROTOCOL, ("RL²",)))
def test_protocol(family, variant):
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; with
    every task broken nothing changes."""
    module, settings = PROTOCOL[variant]
    defaults = dict(num_episodes=2, memory_size=4, hidden_sizes=(4,), num_minibatches=2)
    config = module.Config(**defaults | settings)
    algorithm = getattr(module, module.__name__.rsplit(".")[-1])(family, config)
    state, drawn = begun_with(algorithm, family, 4)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    after, metrics = step(jax.random.key(2), state, drawn)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
    names = {"return/before", "return/after", "return/trial", "entropy", "value_loss", "kl"}
    names |= {"meta_grad_norm", "skipped_tasks", "skipped_updates", "env_steps"}
    assert set(metrics) >= names
    assert all(x.shape == () for x in metrics.values())
    assert metrics["env_steps"] == 4 * config.num_streams * 2 * HORIZON
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert after.num_updates == 1
    changed = [
        bool(np.any(np.asarray(x) != np.asarray(y)))
        for x, y in zip(
            jax.tree.leaves(after.meta.params), jax.tree.leaves(state.meta.params), strict=True
        )
    ]
    assert all(changed)

    hopeless = drawn.replace(number=np.full_like(drawn.number, np.nan))
    same, metrics = step(jax.random.key(2), after, hopeless)
    assert metrics["skipped_tasks"] == 4 * config.num_streams
    assert metrics["skipped_updates"] == 1
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)


# What tasks gave, for curricula


@pytest.fixture(scope="module")
def reported(family):
    """An algorithm with two streams a task, and its parts, its state after an update, and trials of six tasks, one broken."""
    config = rl2.Config(num_episodes=2, num_streams=2, num_minibatches=1, memory_size=4)
    algorithm = rl2.rl2(family, config)
    state, drawn = begun_with(algorithm, family, 6)
    state, _ = jax.jit(algorithm.step)(jax.random.key(5), state, drawn)
    drawn = drawn.replace(number=drawn.number.at[3].set(jnp.nan))
    network = rl2.network_of(family, config)
    parts = learners.recurrent.recurrent_learner(family, config, network)

    @jax.jit
    def recorded(key, state, drawn):
        trials = parts.trials(key, state.meta, drawn)
        data, counted = learners.recurrent.counted_steps(trials, config.num_episodes)
        inputs = jax.vmap(parts.inputs, (None, 0))(state.meta, data)
        hyper = state.meta.hyper
        meta, batch = learners.trial_gradients.with_advantages(
            state.meta, hyper, data, inputs, counted, network=network
        )
        _, v = jax.vmap(network.unroll, (None, 0, 0))(state.meta.params, data.memory.state, inputs)
        results = learners.trial_gradients.task_results(meta, batch, trials, config)
        return trials, counted, v, meta, batch, results

    return algorithm, network, config, state, drawn, recorded(jax.random.key(6), state, drawn)


def test_what_tasks_gave_is_that_of_their_trials(reported):
    _, _, _, state, _, (trials, counted, v, _, _, results) = reported
    mean, spread = state.meta.value_scale
    value = np.where(counted, mean + spread * v, 0.0).reshape(6, 2, -1)
    reward = np.where(counted, trials.reward, 0.0).reshape(6, 2, -1)
    known = np.asarray(counted).reshape(6, 2, -1)
    np.testing.assert_array_equal(results.counted, known)
    np.testing.assert_allclose(results.reward, reward, rtol=1e-6)
    np.testing.assert_allclose(np.where(known, results.value, 0.0), value, rtol=1e-3, atol=1e-4)
    hyper, never = state.meta.hyper, 0.0
    for m in range(6):
        for n in range(2):
            gae, v_next = never, never
            for t in reversed(range(reward.shape[-1])):
                error = reward[m, n, t] + hyper.discount * v_next - value[m, n, t]
                gae = error + hyper.discount * hyper.gae_lambda * gae
                v_next = value[m, n, t]
                if known[m, n, t]:
                    np.testing.assert_allclose(
                        results.advantage[m, n, t], gae, rtol=1e-3, atol=1e-3
                    )
    total = reward.sum(axis=-1)
    good = np.arange(6) != 3
    np.testing.assert_allclose(results.returns[good], total[good].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(results.best[good], total[good].max(axis=1), rtol=1e-5)
    assert np.isnan(results.returns[3])
    assert results.best[3] == -np.inf
    assert np.all(np.isnan(results.episodes[3]))
    np.testing.assert_allclose(results.episodes[good].sum(axis=-1), total[good], rtol=1e-5)
    first = np.asarray(trials.reward).reshape(6, 2, -1)[..., :3].sum(axis=-1)  # it ends at 3
    np.testing.assert_allclose(results.episodes[good, :, 0], first[good], rtol=1e-5)


def test_learning_from_some_tasks_is_learning_from_their_trials_alone(reported):
    """One minibatch: the other trials are taken out of the batch by hand."""
    algorithm, network, config, state, drawn, _ = reported
    learns = jnp.array([True, False, True, True, False, False])
    after, metrics, _ = jax.jit(algorithm.step_with_results)(
        jax.random.key(7), state, drawn, learns
    )
    assert metrics["skipped_tasks"] == 2  # of the broken task; all were tried
    hyper = state.meta.hyper
    losses = functools.partial(
        learners.trial_gradients.minibatch_loss,
        network=network,
        loss=Loss(learners.trial_gradients.ppo),
    )

    @jax.jit
    def by_hand(key):
        # The trials of the step itself, by its own keys.
        act_key, learn_key = jax.random.split(key)
        parts = learners.recurrent.recurrent_learner(family_of(algorithm), config, network)
        trials = parts.trials(act_key, state.meta, drawn)
        data, counted = learners.recurrent.counted_steps(trials, config.num_episodes)
        inputs = jax.vmap(parts.inputs, (None, 0))(state.meta, data)
        meta, batch = learners.trial_gradients.with_advantages(
            state.meta, hyper, data, inputs, counted, network=network
        )
        rows = jnp.array([0, 1, 4, 5, 6, 7])
        some = jax.tree.map(lambda x: x[rows], batch)
        learned, _, _ = learners.minibatches.learn_in_epochs(
            learn_key,
            (meta.params, state.optimizer),
            some,
            hyper,
            losses=losses,
            of_whole=functools.partial(learners.trial_gradients.whole_minibatch, normalize=True),
            optimizer=outer_optimizer(optax.adam, hyper),
            config=config,
        )
        return learned[0]

    expected = by_hand(jax.random.key(7))
    for x, y in zip(jax.tree.leaves(after.meta.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def family_of(algorithm):
    return algorithm.description.family
