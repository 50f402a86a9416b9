import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import adaptation, memory_learner, tasks
from jaxmeta.algorithms import rl2, varibad
from jaxmeta.distributions import Categorical
from jaxmeta.memory_learner import ActorCritic, Hyper, Loss, advantages
from jaxmeta.tasks.bandits import BanditParams
from jaxmeta.tasks.family import TaskFamily
from tests.probes import Counter, CounterParams

HORIZON, EPISODES = 4, 3
MEMORIES = ("gru", "lstm", "linear", "transformer")


@pytest.fixture(scope="module")
def family():
    """Episodes that terminate before their time limit, with a reward that names the task."""

    def sample(key):
        return CounterParams(number=jax.random.normal(key), terminate_at=3, truncate_at=HORIZON)

    return TaskFamily("counter", Counter(), HORIZON, sample, sample, sample)


def trial(family, algorithm, key=0):
    """``(meta, data [T])`` of one trial."""
    meta = algorithm.init(jax.random.key(0)).meta
    task = family.train(jax.random.key(1))

    def act(key):
        history = adaptation.lifetime(
            key,
            meta,
            task,
            learner=algorithm.learner,
            env=family.env,
            num_streams=1,
            num_updates=0,
            num_steps=EPISODES * HORIZON,
        )
        return jax.tree.map(lambda x: x[0, 0], history.trajectories)

    return meta, jax.jit(act)(jax.random.key(key))


@pytest.mark.parametrize("remembers", ["trial", "episode"])
@pytest.mark.parametrize(
    ("memory", "encoder_sizes"), [*((memory, ()) for memory in MEMORIES), ("linear", (6, 5))]
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
    network = rl2.recurrent_actor_critic(family, config)
    parts = memory_learner.memory_learner(family, config, network)
    algorithm = rl2.rl2(family, config)
    meta, data = trial(family, algorithm)
    # Not the nearly uniform policy of a newborn, which would hide what it looks at.
    params = jax.tree.map(lambda x: 3.0 * x, meta.params)

    @jax.jit
    def log_probs(params, data):
        distribution, v = network.unroll(params, data.memory.state, parts.inputs(meta, data))
        return distribution.log_prob(data.action), distribution.log_probs(), v

    np.testing.assert_allclose(log_probs(meta.params, data)[0], data.log_prob, atol=1e-5)
    _, usual, v = log_probs(params, data)
    changed = data.timestep.reward.at[1].add(2.0)  # seen in the first episode
    other = data._replace(timestep=data.timestep._replace(reward=changed))
    _, unusual, other_v = log_probs(params, other)
    second_episode = slice(int(jnp.argmax(data.last)) + 1, None)
    difference = float(jnp.max(jnp.abs(usual - unusual)[second_episode]))
    value_difference = float(jnp.max(jnp.abs(v - other_v)[second_episode]))
    if remembers == "trial":
        assert difference > 1e-4
        assert value_difference > 1e-4
    else:
        assert difference == value_difference == 0
    assert jnp.max(jnp.abs(usual - unusual)[: second_episode.start]) > 1e-4


def test_inputs_show_the_past_and_the_time(family):
    config = rl2.Config(num_episodes=EPISODES, memory_size=4)
    parts = memory_learner.memory_learner(
        family, config, rl2.recurrent_actor_critic(family, config)
    )
    _, data = trial(family, rl2.rl2(family, config))
    inputs = parts.inputs(meta, data)
    num_steps = EPISODES * HORIZON
    assert parts.num_steps == num_steps
    assert inputs.reset.tolist() == [True] + [False] * (num_steps - 1)
    assert jnp.all(inputs.past[0] == 0)  # nothing was done before birth
    np.testing.assert_array_equal(inputs.past[1:, :3], jax.nn.one_hot(data.action[:-1], 3))
    # Across the ends of episodes too: the last reward of an episode is the one that tells most.
    np.testing.assert_allclose(inputs.past[1:, 3], data.reward[:-1])
    assert jnp.sum(data.last) > 1
    np.testing.assert_array_equal(inputs.time[:, 0], data.timestep.first)
    np.testing.assert_allclose(inputs.time[:, 1], np.arange(num_steps) / num_steps)
    np.testing.assert_array_equal(inputs.obs, data.timestep.obs)

    blind = rl2.Config(num_episodes=EPISODES, memory_size=4, sees_time=False)
    parts = memory_learner.memory_learner(family, blind, rl2.recurrent_actor_critic(family, blind))
    assert jnp.all(parts.inputs(meta, data).time[:, 1] == 0)


def test_advantages_are_of_the_whole_trial():
    reward, v = jax.random.normal(jax.random.key(0), (2, 7))
    gamma, lambda_ = 0.9, 0.7
    found = advantages(reward, v, Hyper(discount=gamma, gae_lambda=lambda_))
    delta = [reward[t] + gamma * (v[t + 1] if t < 6 else 0) - v[t] for t in range(7)]
    expected = [sum((gamma * lambda_) ** (k - t) * delta[k] for k in range(t, 7)) for t in range(7)]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-6)


NUM_TRIALS = 200_000


@pytest.mark.parametrize("objective", [memory_learner.ppo, memory_learner.a2c])
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
    config = memory_learner.Config(num_episodes=2, num_epochs=1, num_minibatches=1, normalize=False)
    # Advantages are the returns to come; what is not wanted in them is switched off.
    hyper = Hyper(
        discount=1.0,
        gae_lambda=1.0,
        entropy_cost=0.0,
        value_cost=0.0,
        max_grad_norm=1e9,
        learning_rate=1.0,
    )
    algorithm = memory_learner.learn_from_trials(
        family, config, hyper, network, Loss(objective), optax.sgd
    )

    def histories():
        """``(row of the second pull, first arm, first reward, its probability, means of the second pull)``."""
        for arm, reward in itertools.product((0, 1), (0, 1)):
            unknown = 0.5 if arm == 0 else (1 / 3, 2 / 3)[reward]
            yield 1 + 2 * arm + reward, arm, reward, 0.5, jnp.array([0.5, unknown])

    def expected_return(params):
        pi = jax.nn.softmax(params)
        return 0.5 + sum(pi[0, arm] * p * (pi[row] @ mean) for row, arm, _, p, mean in histories())

    def second_moment():
        """Of a trial's score times the return to come, an entry of the table each."""
        pi = jax.nn.softmax(logits)
        total = jnp.zeros_like(logits)
        for row, arm, reward, p, means in histories():
            for then, paid in itertools.product((0, 1), (0, 1)):
                mean = means[then] if paid else 1 - means[then]
                probability = pi[0, arm] * p * pi[row, then] * mean
                first = (jax.nn.one_hot(arm, 2) - pi[0]) * (reward + paid)
                second = (jax.nn.one_hot(then, 2) - pi[row]) * paid
                total = total.at[0].add(probability * first**2).at[row].add(probability * second**2)
        return total

    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, NUM_TRIALS, split="train")
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    found = 2 * (after.meta.params - logits)  # the loss is a mean over the two steps of a trial
    exact = jax.grad(expected_return)(logits)
    error = jnp.sqrt(second_moment() / NUM_TRIALS)
    assert jnp.max(jnp.abs(found - exact) / error) < 4
    # Nothing else passes: neither no step, nor one that looks at the first episode alone.
    assert jnp.max(jnp.abs(exact[0]) / error[0]) > 8
    assert jnp.max(jnp.abs(exact[1:]) / error[1:]) > 8
    trial_return = float(metrics["return/trial"])
    assert abs(trial_return - float(expected_return(logits))) < 4 * 0.8 / np.sqrt(NUM_TRIALS)


def test_the_scale_of_values_is_the_first_batch_s_and_then_moves_slowly():
    move = memory_learner._moved_scale
    returns = jnp.array([[1.0, 3.0], [5.0, 7.0], [1e6, -1e6]])
    steps = jnp.array([[True, True], [True, True], [False, False]])
    born = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(move(born, returns, steps, 0), [4.0, 5**0.5], rtol=1e-6)
    moved = move(jnp.array([2.0, 1.0]), returns, steps, 1)
    np.testing.assert_allclose(moved, [2.2, 1 + 0.1 * (5**0.5 - 1)], rtol=1e-6)
    np.testing.assert_array_equal(
        move(jnp.array([2.0, 1.0]), returns, ~steps & False, 1), [2.0, 1.0]
    )
    constant = move(born, jnp.ones((2, 2)), jnp.ones((2, 2), bool), 0)
    assert constant[1] > 0  # it is divided by


@pytest.mark.parametrize("module", [rl2, varibad])
@pytest.mark.parametrize("where", ["observed", "only as a successor"])
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
    if module is varibad:
        # Draws of the latent go by a trial's place in its minibatch; the divergence needs none.
        hyper = hyper._replace(reward_cost=0.0, kl_cost=1.0)
    constructor = getattr(module, module.__name__.rsplit(".")[-1])
    algorithm = constructor(family, config, hyper, optimizer=optax.sgd)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
    broken = drawn.replace(number=drawn.number.at[3].set(number))
    without = jax.tree.map(lambda x: x[:3], drawn)
    found, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, broken)
    expected, usual = jax.jit(algorithm.step)(jax.random.key(2), state, without)
    assert metrics["skipped_tasks"] == 1
    assert metrics["skipped_updates"] == 0
    np.testing.assert_allclose(metrics["return/trial"], usual["return/trial"], rtol=1e-5)
    found, expected, start = (s.meta._replace(hyper=()) for s in (found, expected, state))
    for x, y, old in zip(*map(jax.tree.leaves, (found, expected, start)), strict=True):
        np.testing.assert_allclose(x - old, y - old, rtol=2e-3, atol=1e-6)


def test_what_follows_the_last_episode_counts_for_nothing():
    """Episodes that terminate after 3 steps: a trial of two is over after six, and how much longer the
    stream goes on changes neither what is learned nor what is reported."""
    moved, reports = [], []
    for horizon in (3, 5):

        def sample(key, horizon=horizon):
            number = 1.0 + jax.random.uniform(key)
            return CounterParams(number=number, terminate_at=3, truncate_at=horizon)

        family = TaskFamily("counter", Counter(), horizon, sample, sample, sample)
        config = rl2.Config(
            num_episodes=2, memory_size=3, num_epochs=1, num_minibatches=1, sees_time=False
        )
        algorithm = rl2.rl2(family, config, optimizer=optax.sgd)
        state = algorithm.init(jax.random.key(0))
        drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
        after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
        assert metrics["env_steps"] == 4 * 2 * horizon
        moved.append(jax.tree.map(lambda x, y: x - y, after.meta.params, state.meta.params))
        reports.append(metrics)
    for x, y in zip(*map(jax.tree.leaves, moved), strict=True):
        assert jnp.any(x != 0)
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-7)
    for name in ("return/before", "return/after", "return/trial", "entropy", "value_loss"):
        np.testing.assert_allclose(reports[0][name], reports[1][name], rtol=1e-5)


def test_minibatches_must_divide_the_trials(family):
    algorithm = rl2.rl2(family, rl2.Config(num_minibatches=4))
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 6, split="train")
    with pytest.raises(
        ValueError, match="num_minibatches=4 must divide the number of trials, .* = 6"
    ):
        jax.eval_shape(algorithm.step, jax.random.key(2), state, drawn)


PROTOCOL = {
    "RL²": (rl2, {}),
    "RL² by A2C": (rl2, dict(loss="a2c", num_epochs=1, num_minibatches=1)),
    "RL², linear": (rl2, dict(memory="linear", num_streams=2)),
    "no memory": (rl2, dict(memory="none", remembers="episode")),
    "RL², transformer": (rl2, dict(memory="transformer", memory_size=8)),
    "RL² in bfloat16": (rl2, dict(precision="bfloat16")),
    "VariBAD": (varibad, dict(decodes=("rewards", "states"))),
    "VariBAD in bfloat16": (varibad, dict(precision="bfloat16")),
}


def test_acting_and_learning_draw_from_different_keys(family, monkeypatch):
    """Not compiled, so that keys can be read: the one that acts is not the one that is split to learn.

    (JAX's checker of reused keys gives a false alarm for the scan over epochs.)
    """
    whole, split = memory_learner.memory_learner, jax.random.split
    config = rl2.Config(num_episodes=2, memory_size=4, num_minibatches=1, num_epochs=1)
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

    monkeypatch.setattr(memory_learner, "memory_learner", with_a_spy)
    algorithm = rl2.rl2(family, config)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    state = algorithm.init(jax.random.key(0))
    monkeypatch.setattr(jax.random, "split", spy)
    algorithm.step(jax.random.key(2), state, drawn)
    keys = [jax.random.key_data(key).tolist() for key in (*acted, *learned)]
    assert len(acted) == 1
    assert len(learned) >= 1
    assert keys[0] not in keys[1:]


@pytest.mark.parametrize("variant", PROTOCOL)
def test_protocol(family, variant):
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; with
    every task broken nothing changes."""
    module, settings = PROTOCOL[variant]
    defaults = dict(num_episodes=2, memory_size=4, hidden_sizes=(4,), num_minibatches=2)
    config = module.Config(**defaults | settings)
    algorithm = getattr(module, module.__name__.rsplit(".")[-1])(family, config)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
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
        bool(jnp.any(x != y))
        for x, y in zip(
            jax.tree.leaves(after.meta.params), jax.tree.leaves(state.meta.params), strict=True
        )
    ]
    assert all(changed)

    hopeless = drawn.replace(number=jnp.full_like(drawn.number, jnp.nan))
    same, metrics = step(jax.random.key(2), after, hopeless)
    assert metrics["skipped_tasks"] == 4 * config.num_streams
    assert metrics["skipped_updates"] == 1
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
