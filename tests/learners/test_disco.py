"""Agents that follow DiscoRL, against versions by hand in NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.learners import disco
from jaxmeta.learners.disco import Hyper, Moments, Piece, Replay
from jaxmeta.learners.update_rules import Meta
from jaxmeta.meta_updates import windows
from jaxmeta.networks import disco as networks
from jaxmeta.networks.disco import Outputs, Sizes, Targets
from jaxmeta.networks.values import value_mlp
from tests.networks import disco_by_hand as by_hand

FAMILY = tasks.make("gridworld", size=3, horizon=4)
SIZES = Sizes(num_predictions=5, hidden_size=4, memory_size=3)
NUM_ACTIONS = 5
HYPER = Hyper(discount=0.9, gae_lambda=0.8, step_size=0.01)


def random_weights():
    return {k: jnp.asarray(x, float) for k, x in by_hand.weights(networks.shapes(SIZES)).items()}


def small(family=FAMILY, **settings):
    settings = dict(hidden_sizes=(6, 4), model_size=3) | settings
    return disco.disco_learner(disco.disco(sizes=SIZES), family, **settings)


class Lived(NamedTuple):
    parts: disco.DiscoLearner
    meta: Meta
    agent: disco.Agent
    data: object
    update: object


@functools.lru_cache
def newborn(num_streams=2, num_steps=10, **settings):
    """A newborn agent, its first experience, and its compiled update."""
    parts = small(**settings)
    setup = rollouts.Setup(parts.learner, FAMILY.env, num_streams, num_steps)
    meta = Meta(random_weights(), HYPER)

    @jax.jit
    def born(meta):
        task = FAMILY.train(jax.random.key(1))
        agent, streams = rollouts.begin(jax.random.key(2), meta, task, setup=setup)
        return agent, rollouts.collect(jax.random.key(3), meta, task, agent, streams, setup=setup)

    agent, (_, data) = born(meta)
    return Lived(parts, meta, agent, data, jax.jit(parts.learner.update))


def as_arrays(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def outputs_by_hand(params, obs):
    """Dict of ``[B, T + 1, ...]``."""
    rows = [[by_hand.agent(params, x) for x in piece] for piece in np.asarray(obs)]
    return {k: np.array([[x[k] for x in piece] for piece in rows]) for k in rows[0][0]}


def update_by_hand(w, agent, piece, hyper, counts):
    """``(loss, targets, memory, moments)`` of an agent's first update, of which some steps count in the loss."""
    params, slow_params = as_arrays(agent.params), as_arrays(agent.slow)
    seen, slow = (outputs_by_hand(p, piece.obs) for p in (params, slow_params))
    action, last, reward = (np.asarray(x) for x in (piece.action, piece.last, piece.reward))
    batch, length = action.shape
    policy, slow_policy, behaviour = (
        np.apply_along_axis(by_hand.softmax, -1, x)
        for x in (seen["logits"], slow["logits"], np.asarray(piece.behaviour, np.float64))
    )
    q, slow_q = (np.apply_along_axis(by_hand.value, -1, x["q"]) for x in (seen, slow))
    value, slow_value = (policy * q).sum(-1), (policy * slow_q).sum(-1)
    g = np.zeros((batch, length))
    for b in range(batch):
        steps, a = np.arange(length), action[b]
        rho = policy[b, steps, a] / behaviour[b, steps, a]
        taken = slow_q[b, steps, a]
        g[b] = by_hand.returns(
            reward[b], last[b], rho, slow_value[b], taken, hyper.discount, hyper.gae_lambda
        )
    advantage = g - slow_value[:, :-1]
    action_advantage = (slow_q - slow_value[..., None])[:, :-1]
    # After the first update the moments, without their start, are those of the batch.
    mean, std = advantage.mean(), advantage.std()
    x = dict(
        policy=policy,
        behaviour=behaviour,
        slow_policy=slow_policy,
        y=seen["y"],
        slow_y=slow["y"],
        z=seen["z"],
        slow_z=slow["z"],
        action=action,
        reward=reward,
        last=last,
        value=value,
        advantage=advantage,
        scaled_advantage=(advantage - mean) / std,
        slow_q=slow_q[:, :-1],
        action_advantage=action_advantage,
        scaled_action_advantage=(action_advantage - mean) / std,
    )
    targets, memory = by_hand.meta_network(w, tuple(as_arrays(agent.memory)), x)

    def loss(params):
        outputs = outputs_by_hand(params, piece.obs)
        # What the auxiliary policy is to say is no part of the derivative.
        told = outputs | {"logits": outputs["logits"].copy()}
        total = 0.0
        for b in range(batch):
            for t in np.flatnonzero(counts[b]):
                told["logits"][b] = seen["logits"][b]
                told["logits"][b, t] = outputs["logits"][b, t]
                total += by_hand.loss(told, targets, action, last, g, b, t)
        return total / np.sum(counts)

    return loss, targets, memory, (mean, (advantage**2).mean())


@pytest.mark.parametrize("first_steps", [True, False])
def test_an_update_is_that_of_the_paper(x64, first_steps):
    """Targets, memory, moments, the loss's slope and the new parameters, against a version by hand, step by step.

    The agent has lived already: its slow copy, its memory and the policy that acted are others than its own.
    """
    parts = small()
    rng = np.random.default_rng(0)
    params = parts.network.init(jax.random.key(0))

    def other(x, scale=0.5):
        return x + scale * rng.normal(size=x.shape) / np.sqrt(x.shape[0])

    agent = parts.birth(jax.random.key(0), Meta({}, HYPER))
    agent = agent._replace(
        params=jax.tree.map(other, params),
        slow=jax.tree.map(other, params),
        memory=tuple(jnp.asarray(x) for x in np.tanh(rng.normal(size=(2, 3)))),
    )
    last = np.zeros((2, 4), bool)
    last[0, 1] = last[1, 3] = True
    piece = Piece(
        jnp.asarray(rng.normal(size=(2, 5, 9))),
        jnp.asarray(rng.integers(NUM_ACTIONS, size=(2, 4))),
        jnp.asarray(rng.normal(size=(2, 4))),
        jnp.asarray(last),
        jnp.asarray(rng.normal(size=(2, 4, NUM_ACTIONS))),
        jnp.asarray(np.roll(last, 1, axis=1)),
    )
    w = by_hand.weights(networks.shapes(SIZES))
    meta = Meta({k: jnp.asarray(x) for k, x in w.items()}, HYPER)
    # Plain descent shows the gradient.
    parts = small(optimizer=optax.sgd, first_steps=first_steps)
    agent = agent._replace(optimizer=optax.sgd(1.0).init(agent.params))
    after = jax.jit(parts.learn)(meta, agent, piece, jnp.ones(2, bool))
    counts = np.ones((2, 4), bool) if first_steps else ~np.asarray(piece.first)
    loss, _, memory, moments = update_by_hand(w, agent, piece, HYPER, counts)
    np.testing.assert_allclose(after.memory[0], memory[0], rtol=1e-7)
    np.testing.assert_allclose(after.memory[1], memory[1], rtol=1e-7)
    np.testing.assert_allclose(
        after.moments, (0.01 * moments[0], 0.01 * moments[1], 0.99), rtol=1e-7
    )
    old = as_arrays(agent.params)
    for name in old:
        for part in ("kernel", "bias"):
            slope = (old[name][part] - np.asarray(after.params[name][part])) / HYPER.step_size
            direction = rng.normal(size=slope.shape)
            ends = []
            for sign in (1, -1):
                moved = old[name] | {part: old[name][part] + sign * 1e-5 * direction}
                ends.append(loss(old | {name: moved}))
            expected = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(np.sum(slope * direction), expected, rtol=1e-5, atol=1e-8)
    followed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, agent.slow, agent.params)
    for x, y in zip(jax.tree.leaves(after.slow), jax.tree.leaves(followed), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def outputs_with_values(q):
    """Outputs whose action values are nearly ``q [B, T, A]``, with a uniform policy."""
    logits = jnp.log(networks.two_hot(jnp.asarray(q, float)) + 1e-30)
    empty = jnp.zeros((*q.shape[:2], NUM_ACTIONS))
    return Outputs(empty[..., : q.shape[-1]], empty, empty, empty, logits)


def test_value_targets_by_hand():
    """Two actions, uniform: ``G_2 = 3 + .9 V'_3``; ``G_1`` is where the episode ends; ``G_0 = 1 + .9 (V'_1 + c (G_1 - Q'_1))``."""
    slow = np.array([[[2.0, 4.0], [1.0, 3.0], [0.0, 2.0], [5.0, 7.0]]])
    zero = outputs_with_values(np.zeros((1, 4, 2)))
    behaviour = np.log([[[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]]])
    pieces = Piece(
        jnp.zeros((1, 4, 9)),
        jnp.array([[1, 0, 1]]),
        jnp.array([[1.0, 2.0, 3.0]]),
        jnp.array([[False, True, False]]),
        jnp.asarray(behaviour, float),
        jnp.array([[True, False, True]]),
    )
    found = disco.estimates(zero, outputs_with_values(slow), pieces, HYPER)
    g_2 = 3.0 + 0.9 * 6.0
    c_1 = 0.8 * (0.5 / 0.75)  # the action was more probable when it was taken
    g_0 = 1.0 + 0.9 * (2.0 + c_1 * (2.0 - 1.0))
    np.testing.assert_allclose(found.target, [[g_0, 2.0, g_2]], rtol=1e-4)
    np.testing.assert_allclose(found.advantage, [[g_0 - 3.0, 0.0, g_2 - 1.0]], atol=1e-3)
    np.testing.assert_allclose(found.slow_value, [[3.0, 2.0, 1.0, 6.0]], rtol=1e-4)
    np.testing.assert_allclose(found.value, 0.0, atol=1e-5)
    # A ratio above 1 counts as 1.
    rare = pieces._replace(behaviour=jnp.log(jnp.array([[[0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]])))
    found = disco.estimates(zero, outputs_with_values(slow), rare, HYPER)
    np.testing.assert_allclose(found.target[0, 0], 1.0 + 0.9 * (2.0 + 0.8 * 1.0), rtol=1e-4)


def test_moments_are_those_of_what_was_seen():
    rng = np.random.default_rng(0)
    moments, seen, weights = Moments(*jnp.array([0.0, 0.0, 1.0])), [], []
    good = jnp.array([True, False, True])
    for t in range(5):
        x = 3.0 + 2.0 * rng.normal(size=(3, 4))
        moments = disco.updated_moments(moments, jnp.asarray(x, float), good)
        seen.append(x[[0, 2]])
        weights.append(0.99 ** (4 - t))
    weights = np.array(weights) / np.sum(weights)
    mean = np.sum(weights * [x.mean() for x in seen])
    variance = np.sum(weights * [(x**2).mean() for x in seen]) - mean**2
    found = disco.scaled(moments, jnp.array([3.0, 7.0]))
    np.testing.assert_allclose(found, (np.array([3.0, 7.0]) - mean) / np.sqrt(variance), rtol=1e-3)
    # What is alike everywhere has no spread to divide by.
    same = disco.updated_moments(Moments(*jnp.array([0.0, 0.0, 1.0])), jnp.zeros((3, 4)), good)
    assert np.all(np.asarray(disco.scaled(same, jnp.zeros(2))) == 0.0)


def test_the_end_of_an_episode_is_masked_where_the_next_policy_is_predicted():
    """With targets and outputs alike the loss is that of the prediction of the next policy, and of values."""
    rng = np.random.default_rng(0)
    outputs = Outputs(
        *(
            jnp.asarray(rng.normal(size=x), float)
            for x in ((1, 4, 2), (1, 4, 3), (1, 4, 2, 3), (1, 4, 2, 2), (1, 4, 2, 601))
        )
    )
    action = jnp.array([[1, 0, 1]])
    z = jnp.stack([outputs.z[0, t, a] for t, a in enumerate(action[0])])[None]
    targets = Targets(outputs.logits[:, :3], outputs.y[:, :3], z)
    pieces = Piece(None, action, None, jnp.array([[False, True, False]]), None, None)
    found = disco.loss(outputs, targets, pieces, jnp.array([[2.0, -1.0, 400.0]]))[0]
    o = {name: np.asarray(x, np.float64) for name, x in outputs._asdict().items()}
    told = {name: np.asarray(x, np.float64) for name, x in targets._asdict().items()}
    g = np.array([[2.0, -1.0, 400.0]])
    for t in range(3):
        expected = by_hand.loss(o, told, np.asarray(action), np.asarray(pieces.last), g, 0, t)
        np.testing.assert_allclose(found[t], expected, rtol=1e-5)
    values = 0.2 * np.sum(
        np.asarray(networks.two_hot(jnp.array(-1.0))) * by_hand.log_softmax(o["q"][0, 1, 0])
    )
    np.testing.assert_allclose(found[1], -values, rtol=1e-4)


def test_the_optimiser_is_adam_with_steps_of_at_most_one_step_size():
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=3) * np.array([1.0, 1e-3, 100.0]) for _ in range(40)]
    # After small ones, Adam's steps on large ones are larger than its step size.
    gradients += [np.array([50.0, 0.05, -5e3])] * 8
    optimizer = disco.adam(0.1)
    params = jnp.zeros(3)
    state = optimizer.init(params)
    m, v, expected, clipped = np.zeros(3), np.zeros(3), np.zeros(3), False
    for t, g in enumerate(gradients):
        updates, state = optimizer.update(jnp.asarray(g, float), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        clipped |= np.any(np.abs(step) > 1.1)
        expected -= 0.1 * np.clip(step, -1, 1)
    assert clipped
    np.testing.assert_allclose(params, expected, rtol=1e-4)


def test_no_derivative_runs_through_the_scale_of_the_optimiser_s_steps():
    optimizer = disco.adam(1.0)

    def moved(scale):
        updates, _ = optimizer.update(scale * jnp.array([2.0, 0.0]), optimizer.init(jnp.zeros(2)))
        return updates

    # Through the scale, too, the derivative would be 0: Adam's first step has no size.
    np.testing.assert_allclose(jax.jacobian(moved)(0.3), [-1 / 0.3, 0.0], rtol=1e-3)


def test_a_trajectory_is_a_piece_with_the_observation_after_it():
    lived = newborn()
    piece = lived.parts.pieces(lived.agent.params, lived.data)
    assert piece.obs.shape == (2, 11, 9)
    np.testing.assert_array_equal(piece.obs[:, :-1], lived.data.timestep.obs)
    np.testing.assert_array_equal(piece.obs[:, -1], lived.data.next_obs[:, -1])
    np.testing.assert_array_equal(piece.first[:, 1:], lived.data.last[:, :-1])
    assert np.all(piece.first[:, 0])
    logits = lived.parts.policy(lived.agent.params, lived.data)
    np.testing.assert_allclose(logits.log_prob(lived.data.action), lived.data.log_prob, rtol=1e-5)
    np.testing.assert_allclose(piece.behaviour, logits.logits, rtol=1e-5)


def test_the_mean_over_steps_that_count():
    x = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    counts = jnp.array([[True, False, True], [True, True, False]])
    for good, expected in (((True, True), 29 / 4), ((True, False), 5 / 2), ((False, True), 12.0)):
        assert disco.mean_over_steps(x, counts, jnp.array(good)) == expected
    # Episodes of one step: there is nothing to learn from, and nothing is broken.
    assert disco.mean_over_steps(x, jnp.zeros_like(counts), jnp.array([True, False])) == 0.0
    assert np.isnan(disco.mean_over_steps(x, counts, jnp.zeros(2, bool)))


def test_a_stream_with_a_broken_number_does_not_count():
    lived = newborn()
    broken = lived.data._replace(reward=lived.data.reward.at[1, 3].set(jnp.nan))
    others = lived.data._replace(reward=lived.data.reward.at[1].add(1.0))
    found = lived.update(jax.random.key(0), lived.meta, lived.agent, broken)
    same = lived.update(
        jax.random.key(0),
        lived.meta,
        lived.agent,
        broken._replace(reward=others.reward.at[1, 5].set(jnp.inf)),
    )
    usual = lived.update(jax.random.key(0), lived.meta, lived.agent, others)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        assert np.all(np.isfinite(x))
        np.testing.assert_array_equal(x, y)
    assert found.moments.first != usual.moments.first


def test_with_replay_an_agent_keeps_its_last_pieces_and_waits_for_enough():
    """Three updates with 2 pieces each, of which 4 are drawn and 5 kept."""
    lived = newborn(replay=Replay(num_steps=10, capacity=5, num_sampled=4))
    agent, shapes = lived.agent, jax.tree.map(jnp.shape, lived.agent)
    sizes, changed = [], []
    for k in range(4):
        data = lived.data._replace(reward=jnp.full_like(lived.data.reward, float(k)))
        before, agent = agent, lived.update(jax.random.key(k), lived.meta, agent, data)
        sizes.append(int(lived.parts.buffer.size(agent.pieces)))
        changed.append(bool(agent.params["root"]["bias"][0] != before.params["root"]["bias"][0]))
        assert jax.tree.map(jnp.shape, agent) == shapes  # memory does not grow
    assert sizes == [2, 4, 5, 5]
    assert changed == [False, True, True, True]
    drawn = lived.parts.buffer.sample(jax.random.key(9), agent.pieces)
    assert set(np.unique(drawn.reward)) <= {1.0, 2.0, 3.0}
    np.testing.assert_allclose(agent.moments.missing, 0.99**3, rtol=1e-6)


def test_an_agent_learns_what_it_drew_and_not_what_is_new():
    """A draw of one piece of two, alike with the update on that piece alone."""
    replay = newborn(num_streams=1, replay=Replay(num_steps=10, capacity=2, num_sampled=1))
    alone = newborn(num_streams=1)
    data = replay.data
    after = replay.update(jax.random.key(0), replay.meta, replay.agent, data)
    expected = alone.update(jax.random.key(0), alone.meta, alone.agent, data)
    for x, y in zip(
        jax.tree.leaves(after._replace(pieces=())), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_a_meta_gradient_through_one_update_is_finite_and_reaches_what_the_update_used():
    """At birth the gate is closed but for its bias, and the memory speaks in the next update."""
    lived = newborn()

    def after(params, updates):
        agent, meta = lived.agent, lived.meta._replace(params=params)
        for _ in range(updates):
            agent = lived.parts.learner.update(jax.random.key(0), meta, agent, lived.data)
        outputs = lived.parts.policy(agent.params, lived.data)
        return jnp.mean(outputs.log_prob(lived.data.action) * lived.data.reward)

    every = jax.jit(jax.grad(after), static_argnums=1)(lived.meta.params, 1)
    assert all(np.all(np.isfinite(x)) for x in every.values())
    for name in ("lstm/lstm/linear/w", "lstm/linear_2/w", "lstm/linear_4/w", "lstm/linear/b"):
        assert np.any(np.asarray(every[name]) != 0), name
    assert not np.any(every["lstm/linear/w"])  # of a memory that is still zero


@pytest.mark.parametrize(
    "estimator",
    [
        "evolution_strategy",
        pytest.param("persistent_evolution_strategy", marks=pytest.mark.slow),
    ],
)
def test_evolution_strategies_estimate_its_meta_gradient(estimator):
    parts = small(rematerialize=False)
    setup = rollouts.Setup(parts.learner, FAMILY.env, 2, 4)

    class Numbers(NamedTuple):
        discount: float = 0.9
        gae_lambda: float = 0.8
        step_size: float = 0.1
        noise_std: float = 0.1

    objective = windows.Objective(
        lambda agent, data: parts.policy(agent.params, data).log_prob(data.action),
        lambda meta, agent, data, good: jnp.mean(agent.params["y"]["kernel"] ** 2),
        value_mlp(FAMILY.observation_shape, ()),
    )
    made = getattr(windows, estimator)(windows.Window(setup, 4, 2), objective)
    meta = Meta(random_weights(), Numbers())

    @jax.jit
    def estimate(meta):
        task = FAMILY.train(jax.random.key(0))
        member = made.birth(jax.random.key(1), meta, task)
        return made.estimate(jax.random.key(2), meta, member, task)[0]

    gradient = estimate(meta)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(gradient))


def test_published_weights_come_from_a_file(tmp_path):
    w = {k: np.float32(x) for k, x in by_hand.weights(networks.shapes(SIZES)).items()}
    np.savez(tmp_path / "weights.npz", **w)
    rule = disco.disco(tmp_path / "weights.npz", sizes=SIZES)
    found = rule.init(jax.random.key(0))
    assert found.keys() == w.keys()
    for name, x in w.items():
        np.testing.assert_array_equal(found[name], x)
    with pytest.raises(ValueError, match=r"weights=.* the array 'lstm/linear/b' has shape \(4,\)"):
        disco.disco(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="memory_size=0 must be at least 1"):
        disco.disco(sizes=Sizes(memory_size=0))


@pytest.mark.parametrize("name", ["pendulum", "navigation"])
def test_actions_that_are_not_discrete_are_refused(name):
    with pytest.raises(
        ValueError, match=f"family '{name}' has the action space .* needs a Discrete"
    ):
        small(tasks.make(name))


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        (Replay(0), "replay.num_steps=0 must be at least 1"),
        (Replay(4, capacity=0), "replay.capacity=0 must be at least 1"),
        (Replay(4, capacity=3, num_sampled=4), "replay.num_sampled=4 must be at most 3"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(replay, message):
    with pytest.raises(ValueError, match=message):
        small(replay=replay)


def test_trajectories_of_another_length_than_the_replayed_are_refused():
    lived = newborn(replay=Replay(num_steps=10, capacity=5, num_sampled=4))
    short = jax.tree.map(lambda x: x[:, :6], lived.data._replace(memory=()))
    with pytest.raises(ValueError, match="6 steps; they must have replay.num_steps=10"):
        lived.parts.learner.update(jax.random.key(0), lived.meta, lived.agent, short)
