"""Optima against recursions over every history; agents against published figures and exact values."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import references, tasks
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.tasks import gridnavi
from jaxmeta.tasks.tabular import TabularParams, optimal_return
from jaxmeta.types import TimeStep, Trajectory

# Optima by brute force: every history, exactly


def beta_integral(successes, failures):
    """``∫ p^s (1 - p)^f dp``."""
    s, f = successes, failures
    return Fraction(math.factorial(s) * math.factorial(f), math.factorial(s + f + 1))


def likelihood(history, kind, num_arms=2):
    """Probability of what the pulls ``(arm, reward)`` showed, means integrated out."""
    counts = [[history.count((a, r)) for r in (1, 0)] for a in range(num_arms)]
    if kind == "independent":
        return math.prod(beta_integral(*arm) for arm in counts)
    for_first = counts[0][0] + counts[1][1]  # signs that the first arm is the better
    against = len(history) - for_first
    if kind == "uniform":
        return beta_integral(for_first, against)
    p = {"easy": Fraction(1, 10), "medium": Fraction(1, 4), "hard": Fraction(2, 5)}[kind]
    return (p**for_first * (1 - p) ** against + (1 - p) ** for_first * p**against) / 2


def best_total(history, num_pulls, kind, num_arms=2):
    """What the best policy earns after ``history``, times the probability of that."""
    if len(history) == num_pulls:
        return Fraction(0)
    totals = []
    for arm in range(num_arms):
        paid, unpaid = (*history, (arm, 1)), (*history, (arm, 0))
        total = likelihood(paid, kind, num_arms)
        total += best_total(paid, num_pulls, kind, num_arms)
        totals.append(total + best_total(unpaid, num_pulls, kind, num_arms))
    return max(totals)


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(2, 1), (2, 3), (2, 5), (3, 4), (4, 3)])
def test_the_best_policy_of_independent_arms(num_arms, num_pulls):
    expected = best_total((), num_pulls, "independent", num_arms)
    value = references.bayes_optimal_bandit(num_arms=num_arms, num_pulls=num_pulls)
    np.testing.assert_allclose(value, float(expected), rtol=1e-14)


def test_known_values_of_independent_arms():
    value = references.bayes_optimal_bandit
    assert value(num_arms=1, num_pulls=7) == 3.5
    np.testing.assert_allclose(value(num_arms=5, num_pulls=10), 6.660, atol=0.001)
    # The more arms the better, though none of them after the tenth can be pulled.
    assert value(num_arms=5, num_pulls=10) < value(num_arms=10, num_pulls=10)
    assert value(num_arms=10, num_pulls=10) == value(num_arms=50, num_pulls=10)


@pytest.mark.parametrize("kind", ["uniform", "easy", "medium", "hard", "independent"])
def test_the_best_policy_of_dependent_arms(kind):
    best_mean = {
        "uniform": Fraction(3, 4),
        "easy": Fraction(9, 10),
        "medium": Fraction(3, 4),
        "hard": Fraction(3, 5),
        "independent": Fraction(2, 3),
    }
    for num_pulls in (1, 2, 4, 5):
        expected = num_pulls * best_mean[kind] - best_total((), num_pulls, kind)
        regret = references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=num_pulls)
        np.testing.assert_allclose(regret, float(expected), rtol=1e-13)


@pytest.mark.parametrize(
    ("kind", "regret"),
    [
        ("uniform", 1.221),
        ("easy", 0.625),
        ("medium", 1.000),
        ("hard", 2.312),
        ("independent", 1.748),
    ],
)
def test_regret_in_a_hundred_pulls(kind, regret):
    np.testing.assert_allclose(
        references.bayes_optimal_dependent_bandit(kind=kind), regret, atol=0.0005
    )


def best_trial(num_episodes, num_steps, size):
    """Value of GridNavi as a Bayes-adaptive MDP: by position, time and the set of goals still possible."""

    @functools.cache
    def value(time, x, y, possible):
        if time == num_episodes * num_steps:
            return 0.0
        if time % num_steps == 0:
            x = y = 0
        values = []
        for move_x, move_y in gridnavi.MOVES.tolist():
            here = (
                min(max(x + move_x, 0), size - 1),
                min(max(y + move_y, 0), size - 1),
            )
            p = (here in possible) / len(possible)
            total = 0.0
            if p > 0:
                total += p * (1.0 + value(time + 1, *here, frozenset([here])))
            if p < 1:
                total += (1 - p) * (-0.1 + value(time + 1, *here, possible - {here}))
            values.append(total)
        return max(values)

    return value(0, 0, 0, frozenset(map(tuple, gridnavi.goals(size).tolist())))


@pytest.mark.parametrize(
    ("num_episodes", "num_steps", "size"),
    # In 1, 2 and 3 steps not every goal can be reached; in 4 all of size 3 can.
    [
        (2, 1, 3),
        (3, 2, 3),
        (3, 3, 3),
        (1, 9, 3),
        (2, 4, 3),
        (4, 5, 3),
        (3, 4, 4),
        (1, 8, 4),
        (2, 6, 4),
    ],
)
def test_the_best_trial_of_gridnavi(num_episodes, num_steps, size):
    value = references.bayes_optimal_gridnavi(
        num_episodes=num_episodes, num_steps=num_steps, size=size
    )
    expected = best_trial(num_episodes, num_steps, size)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_the_trial_of_four_episodes():
    """All that is lost is lost in the first episode: what it leaves lies on one straight way."""
    value = functools.partial(references.bayes_optimal_gridnavi, num_steps=15)
    told = np.mean([15 + 1.1 - 1.1 * sum(goal) for goal in gridnavi.goals(5).tolist()])
    np.testing.assert_allclose(4 * told, 44.286, atol=0.0005)
    np.testing.assert_allclose(value(num_episodes=4), 37 + 3 / 14, rtol=1e-12)
    np.testing.assert_allclose(value(num_episodes=1), 4.0, rtol=1e-12)
    np.testing.assert_allclose(value(num_episodes=4), value(num_episodes=1) + 3 * told, rtol=1e-12)


# Gittins indices


def test_published_gittins_indices():
    """Gittins 1989, for Beta(s + 1, f + 1)."""
    table = references.gittins_indices(num_pulls=10, discount=0.9)
    published = {(0, 0): 0.7029, (1, 0): 0.8001, (0, 1): 0.5001, (1, 1): 0.6346, (2, 2): 0.6010}
    for (successes, failures), index in {**published, (9, 1): 0.8695}.items():
        np.testing.assert_allclose(table[successes, failures], index, atol=6e-5)


@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (3, 1), (2, 7)])
def test_an_index_is_where_switching_for_good_is_worth_as_much(successes, failures):
    """By bisection, for one arm at a time, to where rewards are discounted by 1e-8."""
    discount = 0.5

    def advantage(sure):
        @functools.cache
        def go_on(s, f):
            p = (s + 1) / (s + f + 2)
            if s + f == successes + failures + 26:
                return p / (1 - discount)
            after = [max(sure / (1 - discount), go_on(*x)) for x in ((s + 1, f), (s, f + 1))]
            return p + discount * (p * after[0] + (1 - p) * after[1])

        return go_on(successes, failures) - sure / (1 - discount)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if advantage(middle) > 0 else (low, middle)
    table = references.gittins_indices(num_pulls=10, discount=discount)
    np.testing.assert_allclose(table[successes, failures], low, atol=1e-6)


def test_indices_without_a_future_are_means():
    table = references.gittins_indices(num_pulls=4, discount=0.0)
    successes, failures = np.indices((5, 5))
    np.testing.assert_allclose(table, (successes + 1) / (successes + failures + 2), atol=1e-12)
    table = references.gittins_indices(num_pulls=4, discount=0.9)
    known = successes + failures <= 4
    assert (table > (successes + 1) / (successes + failures + 2))[known].all()


# Agents


def live(learner, family, *, num_tasks, num_updates=0, num_steps, key=0):
    """Tasks ``[M]`` and the only stream of a lifetime in each: a trajectory ``[M, K + 1, T]``."""
    task_key, life_key = jax.random.split(jax.random.key(key))
    drawn = tasks.sample_tasks(task_key, family, num_tasks, split="test")
    setup = Setup(learner, family.env, num_streams=1, num_steps=num_steps)

    def one(key, task):
        return lifetime(key, (), task, setup=setup, num_updates=num_updates)

    history = jax.jit(jax.vmap(one))(jax.random.split(life_key, num_tasks), drawn)
    trajectories = jax.tree.map(lambda x: x[:, :, 0], history.trajectories)
    return drawn, history.agent, trajectories


def assert_mean(values, expected, *, exact=True, rounding=0.0):
    """Within four standard errors, of both sides where the expected value was simulated as often."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error * (1 if exact else 2**0.5) + rounding


def total_rewards(learner, family, **settings):
    return live(learner, family, **settings)[2].reward.sum((1, 2))


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (references.random_agent(num_actions=5), 5.0),
        (references.greedy(num_arms=5), 6.56),
        (references.epsilon_greedy(num_arms=5, epsilon=0.0), 6.56),
        (references.epsilon_greedy(num_arms=5, epsilon=1.0), 5.0),
        (references.thompson(num_arms=5), 5.83),
        (references.ucb1(num_arms=5, exploration=0.1), 6.65),
        (references.gittins(num_arms=5, num_pulls=10, discount=0.9), 6.64),
    ],
    ids=["random", "greedy", "epsilon=0", "epsilon=1", "thompson", "ucb1", "gittins"],
)
def test_five_arms_and_ten_pulls(learner, expected):
    family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
    totals = total_rewards(learner, family, num_tasks=4000, num_steps=10)
    assert_mean(totals, expected, rounding=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (references.greedy(num_arms=50), 78.4),
        (references.thompson(num_arms=50), 64.5),
        (references.ucb1(num_arms=50, exploration=0.2), 84.8),
        (references.gittins(num_arms=50, num_pulls=100, discount=0.98), 85.2),
    ],
    ids=["greedy", "thompson", "ucb1", "gittins"],
)
@pytest.mark.usefixtures("in_earnest")
def test_fifty_arms_and_a_hundred_pulls(learner, expected):
    family = tasks.make("bernoulli_bandit", num_arms=50, num_pulls=100)
    totals = total_rewards(learner, family, num_tasks=4000, num_steps=100)
    assert_mean(totals, expected, exact=False, rounding=0.05)


@pytest.mark.parametrize("kind", ["uniform", "easy", "hard"])
def test_the_greedy_agent_is_optimal_for_dependent_arms(kind):
    family = tasks.make("dependent_bandit", kind=kind, num_pulls=30)
    drawn, _, data = live(references.dependent_greedy(), family, num_tasks=4000, num_steps=30)
    pulled = jnp.take_along_axis(drawn.mean, data.action[:, 0], axis=1)
    regret = jnp.sum(jnp.max(drawn.mean, axis=1)[:, None] - pulled, axis=1)
    assert_mean(regret, references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=30))


def test_counts_are_those_of_the_stream():
    """Whatever episodes begin in it; a pull counts at once, its reward when it is seen."""
    seen = []
    learner = references.thompson(num_arms=3)
    step = jax.jit(learner.act)
    counts = learner.memory(())
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    rng = np.random.default_rng(0)
    for t in range(10):
        action, log_prob, counts = step(jax.random.key(t), (), (), counts, timestep)
        assert log_prob == 0
        for arm in range(3):
            assert counts.pulls[arm] == [a for a, _ in seen].count(arm) + (arm == action)
            assert counts.reward[arm] == seen.count((arm, 1))
        reward = int(rng.integers(2))
        seen.append((int(action), reward))
        timestep = TimeStep(jnp.ones(1), action, jnp.array(float(reward)), jnp.array(t % 4 == 3))


def choose(learner, reward, pulls):
    """The arm pulled by one who remembers these, and was paid nothing just now."""
    counts = references.Counts(jnp.array(reward, float), jnp.array(pulls, float))
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros((), bool))
    return learner.act(jax.random.key(0), (), (), counts, timestep)[0]


def test_choices_by_hand():
    # Means 5/8, 2/3, 1/2: greedy takes the highest; enough exploration, the least tried.
    remembered = ([4, 1, 0], [6, 1, 0])
    assert choose(references.greedy(num_arms=3), *remembered) == 1
    assert choose(references.ucb1(num_arms=3, exploration=0.0), *remembered) == 1
    assert choose(references.ucb1(num_arms=3, exploration=2.0), *remembered) == 2
    # 1/2 + c sqrt(2 log 8 / 2) overtakes 2/3 + c sqrt(2 log 8 / 3) where c (1.442 - 1.177) > 1/6.
    for c, arm in ((0.62, 1), (0.64, 2)):
        assert choose(references.ucb1(num_arms=3, exploration=c), *remembered) == arm
    # Untried is worth 0.7029, seven successes of ten 0.7107 (> 2/3) at a discount of 0.9.
    gittins = references.gittins(num_arms=2, num_pulls=10, discount=0.9)
    assert choose(gittins, [3, 0], [5, 0]) == 1
    assert choose(references.greedy(num_arms=2), [3, 0], [5, 0]) == 0
    # Three failures of the first arm and a success of the second speak for the second.
    assert choose(references.dependent_greedy(), [1, 1], [4, 1]) == 1
    assert choose(references.dependent_greedy(), [1, 0], [2, 1]) == 0


def test_thompson_sampling_draws_from_the_posterior():
    """Beta(4, 2) exceeds Beta(1, 1) with its mean as the probability, 2/3."""
    counts = references.Counts(jnp.array([3.0, 0.0]), jnp.array([4.0, 0.0]))
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros((), bool))

    def draws(learner):
        act = jax.jit(jax.vmap(lambda key: learner.act(key, (), (), counts, timestep)[0]))
        return act(jax.random.split(jax.random.key(0), 20_000))

    assert_mean(draws(references.thompson(num_arms=2)), 1 / 3)
    # Optimistic: the first is at least 2/3 and the second loses where that is, or the first's draw, is more.
    u = np.random.default_rng(0).beta(4, 2, 20_000)
    share = 1 - np.maximum(u, 2 / 3).mean()
    assert_mean(draws(references.thompson(num_arms=2, optimistic=True)), share, exact=False)


# PSRL


def test_an_update_counts_what_was_seen():
    learner = references.psrl(num_states=3, num_actions=2, horizon=2)
    agent = learner.init(jax.random.key(0), ())
    assert not any(x.any() for x in agent.posterior)
    states, actions = np.array([[0, 2], [0, 2]]), np.array([[1, 0], [1, 1]])
    successors, rewards = np.array([[2, 1], [2, 0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    trajectories = episode(states, actions, rewards, successors, num_states=3)
    posterior = learner.update(jax.random.key(1), (), agent, trajectories).posterior
    transitions, total = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transitions[0, 1, 2], transitions[2, 0, 1], transitions[2, 1, 0] = 2, 1, 1
    total[0, 1], total[2, 0], total[2, 1] = 4, 2, 4
    np.testing.assert_array_equal(posterior.transitions, transitions)
    np.testing.assert_array_equal(posterior.reward, total)


def episode(states, actions, rewards, successors, *, num_states):
    """Trajectories ``[N, T]`` of states and successors by number."""
    observed = lambda x: jax.nn.one_hot(jnp.asarray(x), num_states)  # noqa: E731
    zeros = jnp.zeros(np.shape(states))
    return Trajectory(
        timestep=TimeStep(observed(states), zeros, zeros, zeros),
        action=jnp.asarray(actions),
        log_prob=zeros,
        reward=jnp.asarray(rewards),
        discount=1 - zeros,
        last=zeros,
        next_obs=observed(successors),
        memory=(),
    )


def test_one_who_has_seen_enough_acts_optimally():
    family = tasks.make("tabular", num_states=4, num_actions=3, horizon=5)
    task = family.test(jax.random.key(0))
    learner = references.psrl(num_states=4, num_actions=3, horizon=5)
    agent = learner.init(jax.random.key(1), ())
    known = references.Posterior(1e7 * task.transition, 1e7 * task.reward)
    once = episode([[0]], [[0]], [[0.0]], [[0]], num_states=4)
    policy = learner.update(jax.random.key(2), (), agent._replace(posterior=known), once).policy
    np.testing.assert_allclose(
        policy_return(task, policy), optimal_return(task, horizon=5), rtol=1e-3
    )


def policy_return(task: TabularParams, policy):
    """Expected return of ``policy [H, S]``."""
    occupancy, total = np.asarray(task.initial), 0.0
    for actions in np.asarray(policy):
        state = np.arange(len(actions))
        total += occupancy @ np.asarray(task.reward)[state, actions]
        occupancy = occupancy @ np.asarray(task.transition)[state, actions]
    return total


def test_an_agent_draws_from_its_prior():
    """With one state and two actions the newborn takes either equally often, whatever it expects."""
    for prior in (0.0, 1.0):
        learner = references.psrl(num_states=1, num_actions=2, horizon=1, reward_prior=prior)
        born = jax.vmap(learner.init, (0, None))(jax.random.split(jax.random.key(0), 2000), ())
        assert_mean(born.policy[:, 0, 0], 0.5)
    # After a reward of r for the first, that is N((prior + r) / 2, 1 / 2) and the other N(prior, 1).
    learner = references.psrl(num_states=1, num_actions=2, horizon=1, reward_prior=1.0)
    seen = episode([[0]], [[0]], [[3.0]], [[0]], num_states=1)
    agent = learner.init(jax.random.key(0), ())
    after = jax.jit(jax.vmap(lambda key: learner.update(key, (), agent, seen).policy[0, 0]))
    chosen = after(jax.random.split(jax.random.key(1), 20_000))
    assert_mean(chosen, math.erfc(1 / 1.5**0.5 / 2**0.5) / 2)


def test_each_episode_follows_its_policy():
    family = tasks.make("tabular", num_states=3, num_actions=4, horizon=3)
    learner = references.psrl(num_states=3, num_actions=4, horizon=3)
    _, agent, data = live(learner, family, num_tasks=5, num_updates=2, num_steps=3)
    states = np.asarray(data.timestep.obs).argmax(-1)
    policy = np.asarray(agent.policy)  # [M, K + 1, H, S]
    np.testing.assert_array_equal(
        data.action, np.take_along_axis(policy, states[..., None], axis=-1)[..., 0]
    )
    assert data.timestep.first[:, :, 0].all()
    visits = np.asarray(agent.posterior.transitions).sum((-1, -2, -3))
    np.testing.assert_array_equal(visits, np.full((5, 3), 3.0) * np.arange(3))


@pytest.mark.slow
@pytest.mark.parametrize(("num_episodes", "published"), [(10, 138.1), (25, 408.8)])
def test_published_figures_of_psrl(num_episodes, published):
    family = tasks.make("tabular")
    totals = total_rewards(
        references.psrl(), family, num_tasks=500, num_updates=num_episodes - 1, num_steps=10
    )
    assert_mean(totals, published, exact=False)


@pytest.mark.parametrize(
    "learner",
    [
        references.random_agent(num_actions=3),
        references.greedy(num_arms=3),
        references.epsilon_greedy(num_arms=3, epsilon=0.2),
        references.ucb1(num_arms=3, exploration=0.2),
        references.thompson(num_arms=3),
        references.gittins(num_arms=3, num_pulls=4, discount=0.5),
        references.psrl(num_states=2, num_actions=3, horizon=2),
    ],
    ids=["random", "greedy", "epsilon_greedy", "ucb1", "thompson", "gittins", "psrl"],
)
def test_everything_is_float64_where_float_is(learner, x64):
    """A step's output has the types of its input, so that it can be scanned over."""
    agent = learner.init(jax.random.key(0), ())
    memory = learner.memory(())
    obs = jnp.eye(2)[0]
    timestep = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    with jax.debug_key_reuse(True):
        action, log_prob, after = learner.act(jax.random.key(1), (), agent, memory, timestep)
        once = episode([[0]], [[0]], [[0.0]], [[0]], num_states=2)
        updated = learner.update(jax.random.key(2), (), agent, once)
    assert action.dtype == jnp.int32
    assert log_prob.dtype == jnp.float64
    for one, other in ((memory, after), (agent, updated)):
        assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, other)
        assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)
        assert not any(x.dtype == jnp.float32 for x in jax.tree.leaves(other))


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (references.bayes_optimal_bandit, dict(num_arms=0, num_pulls=1), "num_arms=0 must be"),
        (
            references.bayes_optimal_bandit,
            dict(num_arms=5, num_pulls=100),
            "num_arms=5 with num_pulls=100 has .* states of knowledge",
        ),
        (
            references.bayes_optimal_bandit,
            dict(num_arms=10, num_pulls=40),
            "num_arms=10 with num_pulls=40 has .* states of knowledge",
        ),
        (references.bayes_optimal_dependent_bandit, dict(kind="eazy"), "kind='eazy' .*'easy'"),
        (
            references.bayes_optimal_dependent_bandit,
            dict(kind="easy", num_pulls=0),
            "num_pulls=0 must be at least 1",
        ),
        (
            references.bayes_optimal_gridnavi,
            dict(num_episodes=1, num_steps=5, size=8),
            "size=8 must be at most 7",
        ),
        (references.bayes_optimal_gridnavi, dict(num_episodes=0, num_steps=5), "num_episodes=0"),
        (
            references.ucb1,
            dict(num_arms=2, exploration=-1.0),
            "exploration=-1.0 must lie between 0",
        ),
        (references.epsilon_greedy, dict(num_arms=2, epsilon=1.5), "epsilon=1.5 must lie between"),
        (
            references.gittins,
            dict(num_arms=2, num_pulls=3, discount=1.0),
            "discount=1.0 must be below",
        ),
        (
            references.gittins_indices,
            dict(num_pulls=0, discount=0.9),
            "num_pulls=0 must be at least",
        ),
        (references.thompson, dict(num_arms=0), "num_arms=0 must be at least 1"),
        (references.psrl, dict(horizon=0), "horizon=0 must be at least 1"),
        (references.psrl, dict(reward_noise=0.0), "reward_noise=0.0 must lie between 1e-06"),
    ],
)
def test_bad_settings_are_named(function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(**settings)
