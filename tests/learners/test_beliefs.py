"""The belief's loss and HyperX's bonuses, written out; `test_varibad` holds what learns from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import learners, rollouts, tasks
from jaxmeta.algorithms.varibad import Config, Hyper, belief_actor_critic, varibad
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import joined

SMALL = dict(
    num_episodes=2, memory_size=6, hidden_sizes=(8,), decoder_sizes=(8,), latent_size=3,
    num_epochs=1, num_minibatches=1, decodes=("rewards", "states"),
)  # fmt: skip


def test_the_loss_is_the_weighted_elbo_of_the_paper():
    """Written out in numpy for one trial with a reset in its middle: each posterior against the one before,
    or N(0, I) where nothing was known, and each held against all transitions."""
    family = tasks.make("gridnavi", size=3, horizon=2)
    config = Config(**SMALL | {"remembers": "episode"})
    hyper = Hyper(reward_cost=2.0, state_cost=3.0, kl_cost=5.0)
    network, belief = belief_actor_critic(family, config)
    parts = learners.recurrent_learner(family, config, network)
    setup = rollouts.Setup(parts.learner, family.env, num_streams=1, num_steps=4)

    @jax.jit
    def lived():
        meta = varibad(family, config, hyper).init(jax.random.key(0)).meta
        task = family.train(jax.random.key(2))
        history = rollouts.lifetime(jax.random.key(1), meta, task, setup=setup, num_updates=0)
        data = jax.tree.map(lambda x: x[0, 0], history.trajectories)
        return meta, data, parts.inputs(meta, data)

    meta, data, inputs = jax.tree.map(np.asarray, lived())
    assert inputs.reset.tolist() == [True, False, True, False]
    params = jax.tree.map(lambda x: 2.0 * x, meta.params)
    key = jax.random.key(3)
    # Nothing of a fifth step, which does not count.
    longer = jax.tree.map(lambda x: np.concatenate([x, 3 * x[:1]]), data._replace(memory=()))
    longer = longer._replace(memory=data.memory)
    more = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), inputs)
    counted = np.arange(5) < 4
    loss, report = jax.jit(belief.loss)(params, key, longer, more, counted, hyper)

    plain = jax.tree.map(np.asarray, params)
    data, inputs = jax.tree.map(np.asarray, (data, inputs))

    def mlp(part, x):
        for name in sorted(part["body"]["params"]) if part["body"] else ():
            layer = part["body"]["params"][name]
            x = np.tanh(x @ layer["kernel"] + layer["bias"])
        head = part["head"]["params"]
        return x @ head["kernel"] + head["bias"]

    memory = recurrent.gru(6)
    seen = np.concatenate([inputs.obs, inputs.past, inputs.time], axis=1)
    y, _ = jax.jit(
        lambda seen: memory.unroll(params["encoder"], memory.initial(), seen, inputs.reset)
    )(seen)
    belief = mlp(plain["posterior"], np.asarray(y))
    mean, std = belief[:, :3], np.exp(belief[:, 3:])
    kl = np.zeros(4)
    for t in range(4):
        m0, s0 = (0.0, 1.0) if t in (0, 2) else (mean[t - 1], std[t - 1])
        terms = np.log(s0 / std[t]) + (std[t] ** 2 + (mean[t] - m0) ** 2) / (2 * s0**2) - 0.5
        kl[t] = terms.sum()
    m = mean + std * np.asarray(jax.random.normal(key, (4, 3)))
    action = np.eye(5)[np.asarray(data.action)]
    errors = {"rewards": [], "states": []}
    for t in range(4):
        for i in range(4):
            cause = np.concatenate([data.timestep.obs[i], action[i]])
            rank = 8
            code = mlp(plain["rewards"]["code"], m[t])
            features = mlp(plain["rewards"]["features"], np.append(cause, data.next_obs[i]))
            errors["rewards"].append((code @ features / rank**0.5 - data.reward[i]) ** 2)
            code = mlp(plain["states"]["code"], m[t])
            features = mlp(plain["states"]["features"], cause).reshape(rank, -1)
            errors["states"].append(np.mean((code @ features / rank**0.5 - data.next_obs[i]) ** 2))
    reward_error, state_error = (np.mean(errors[name]) for name in ("rewards", "states"))
    np.testing.assert_allclose(report["belief_kl"], kl.sum(), rtol=1e-4)
    np.testing.assert_allclose(report["error/rewards"], reward_error, rtol=1e-4)
    np.testing.assert_allclose(report["error/states"], state_error, rtol=1e-4)
    expected = 2.0 * reward_error + 3.0 * state_error + 5.0 * kl.mean() / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


BONUSES = dict(bonuses=("novelty", "error"), novelty_sizes=(3, 2), latent_size=2, memory_size=3)


def recorded_trial(family, config):
    """The network's parts, its parameters, and a trial of a random policy with the network's inputs, without an axis."""
    network, parts = belief_actor_critic(family, config)
    learner = learners.recurrent_learner(family, config, network)
    params = network.init(jax.random.key(0))
    meta = learners.recurrent.Meta(params, jnp.zeros(2), jnp.ones(()), Hyper())
    drawn = tasks.sample_tasks(jax.random.key(1), family, 1, split="train")
    data = learner.trials(jax.random.key(2), meta, drawn)
    data = jax.tree.map(lambda x: x[0], data)
    return parts, params, data, learner.inputs(meta, data)


def test_the_published_loss_of_three_steps(x64):
    """The cross-entropy of whether a reward is positive, of one logit for each state, which the successor picks; all by hand."""
    family = tasks.make("gridnavi", size=3, horizon=3)
    config = Config(
        memory_size=4, latent_size=2, decoder_sizes=(5,),
        reward_error="cross_entropy", reward_decoder="successor",
    )  # fmt: skip
    parts, params, data, inputs = recorded_trial(family, config)
    data = data._replace(reward=jnp.asarray([-0.1, 1.0, -0.1]))
    hyper, key = Hyper(reward_cost=1.0, kl_cost=0.01), jax.random.key(3)
    y, _ = parts.encoder.unroll(
        params["encoder"], parts.encoder.initial(), joined(inputs), inputs.reset
    )
    loss, report = parts.negative_elbo(params, key, y, data, inputs, jnp.ones(3, bool), hyper)
    q = parts.posteriors(params, y)
    m = np.asarray(q.mean + jnp.exp(q.log_std) * jax.random.normal(key, (3, 2)))
    code = jax.tree.map(np.asarray, params["rewards"]["code"])
    layer, head = code["body"]["params"]["Dense_0"], code["head"]["params"]
    cell = np.argmax(data.next_obs.reshape(3, -1), axis=1)
    total = 0.0
    for t in range(3):  # each belief, about the past and the future
        logits = np.tanh(m[t] @ layer["kernel"] + layer["bias"]) @ head["kernel"] + head["bias"]
        assert logits.shape == (9,)
        for i in range(3):
            p = 1 / (1 + np.exp(-logits[cell[i]]))
            total -= np.log(p) if i == 1 else np.log(1 - p)
    np.testing.assert_allclose(report["error/rewards"], total / 9, rtol=1e-10)
    # The published sum over all pairs and the divergences of weight 0.01, both divided by T².
    np.testing.assert_allclose(loss, (total + 0.01 * report["belief_kl"]) / 9, rtol=1e-10)


def test_the_spread_of_a_belief_is_read_as_it_is_told(x64):
    family = tasks.make("gridnavi", size=3, horizon=3)
    read = {}
    for spread in ("std", "log_variance"):
        config = Config(memory_size=4, latent_size=2, spread=spread)
        parts, params, _, inputs = recorded_trial(family, config)
        y = jax.random.normal(jax.random.key(0), (3, 4))
        read[spread] = np.asarray(parts.features(params, inputs, y))
    np.testing.assert_array_equal(*(x[:, :-2] for x in read.values()))
    variance = read["std"][:, -2:] ** 2
    np.testing.assert_allclose(read["log_variance"][:, -2:], np.log(variance), rtol=1e-10)


def test_bonuses_are_of_the_belief_after_a_step(x64):
    """Both written out: of the next step's inputs and belief, and of the transition before them; 0 at the last step."""
    family = tasks.make("gridnavi", size=3, horizon=4)
    config = Config(**BONUSES, decodes=("rewards", "states"), decoder_sizes=(3,))
    parts, params, data, inputs = recorded_trial(family, config)
    counted = jnp.arange(4) < 3
    hyper = Hyper(reward_cost=2.0, state_cost=3.0)
    key = jax.random.key(3)
    found = parts.bonus(params, key, data, inputs, counted, hyper)
    y, _ = parts.encoder.unroll(
        params["encoder"], parts.encoder.initial(), joined(inputs), inputs.reset
    )
    mean, log_std = np.split(np.asarray(parts.posterior.apply(params["posterior"], y)), 2, axis=1)
    m = mean[1:] + np.exp(log_std[1:]) * jax.random.normal(key, (4, 2))[:3]
    for t in range(4):
        novelty = error = 0.0
        if t < 2:  # the third is the last that counts
            seen = jnp.concatenate([inputs.obs[t + 1], mean[t + 1], 2 * log_std[t + 1]])
            fixed, trained = (
                parts.novelty.apply(params["novelty"][x], seen) for x in ("fixed", "trained")
            )
            novelty = np.mean((fixed - trained) ** 2)
            cause = jnp.concatenate([inputs.obs[t], jnp.eye(5)[data.action[t]]])
            whole = jnp.concatenate([cause, data.next_obs[t]])
            reward, state = (
                parts.decoders[name].apply(params[name], m[t][None], x[None])[0, 0]
                for name, x in (("rewards", whole), ("states", cause))
            )
            error = 2 * (reward[0] - data.reward[t]) ** 2
            error += 3 * np.mean((state - data.next_obs[t]) ** 2)
        np.testing.assert_allclose(found["novelty"][t], novelty, rtol=1e-6)
        np.testing.assert_allclose(found["error"][t], error, rtol=1e-6)


@pytest.mark.slow
def test_novelty_is_learned_away_and_its_networks_teach_nothing_else():
    """The prediction's error has a gradient in its own network alone; the fixed one stays."""
    family = tasks.make("gridnavi", size=3, horizon=4)
    config, hyper = Config(**BONUSES), Hyper()
    parts, params, data, inputs = recorded_trial(family, config)
    counted = jnp.ones(4, bool)

    def error(params):
        return parts.loss(params, jax.random.key(3), data, inputs, counted, hyper)[1][
            "error/novelty"
        ]

    gradient = jax.grad(error)(params)
    moved = {name: any(map(jnp.any, jax.tree.leaves(x))) for name, x in gradient.items()}
    assert [name for name, any_moved in moved.items() if any_moved] == ["novelty"]
    assert not any(map(jnp.any, jax.tree.leaves(gradient["novelty"]["fixed"])))
    before = error(params)
    for _ in range(20):
        params = jax.tree.map(lambda x, g: x - 0.01 * g, params, jax.grad(error)(params))
    assert error(params) < 0.9 * before
