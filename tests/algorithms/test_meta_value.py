"""The meta-learned value against enumeration, linear algebra and exact values."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.algorithms import meta_value as module
from jaxmeta.algorithms.meta_value import Agent, Config, Hyper, meta_value, meta_value_parts
from jaxmeta.estimators import exact
from jaxmeta.runs import training
from jaxmeta.tasks.tabular import state_values
from jaxmeta.types import TimeStep, Trajectory

S, A, H = 2, 2, 2
HYPER = Hyper(discount=0.9, trace_lambda=0.7, step_size=0.6)
LINEAR = dict(hidden_sizes=(), policy="softmax_linear", num_updates=3, step_sizes="fixed")


@pytest.fixture(scope="module")
def world():
    """An MDP of two steps, of which all paths are known; observations say state and time."""

    @jax.jit
    def drawn():
        mdp = exact.random_mdp(jax.random.key(0), num_states=S, num_actions=A, discount=0.9)
        keys = jax.random.split(jax.random.key(1), 3)
        pi, mu = (jax.random.normal(k, (A * (H * S + 1),)) for k in keys[:2])
        return mdp, pi, mu, jax.random.normal(keys[2], ())

    with jax.enable_x64(True):
        mdp, pi, mu, number = drawn()
        states, actions = exact.trajectories(S, A, H)
        return mdp, states, actions, {"theta": pi}, {"theta": mu}, number


def observed(time, state):
    return jax.nn.one_hot(time * S + state, H * S)


def every_observation():
    """``[H, S, H·S]``."""
    return jnp.eye(H * S).reshape(H, S, H * S)


def parts_of(**settings):
    family = tasks.make("tabular", num_states=H * S, num_actions=A)
    config = Config(**(LINEAR | settings))
    return meta_value_parts(family, config), config


def log_probs(parts, params, obs):
    looking = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    return parts.policy.step(params, (), looking)[0].log_probs()


def data_of(parts, world, path):
    """One path as a batch of one stream, which terminates."""
    mdp, states, actions, _, mu, _ = world
    s, a = jnp.asarray(states)[path], jnp.asarray(actions)[path]
    obs = jax.vmap(observed)(jnp.arange(H), s)
    log_prob = jax.vmap(lambda o, a: log_probs(parts, mu, o)[a])(obs, a)
    last = jnp.zeros(H, bool).at[-1].set(True)
    stream = Trajectory(
        timestep=TimeStep(obs, a, jnp.zeros(H), jnp.zeros(H, bool).at[0].set(True)),
        action=a,
        log_prob=log_prob,
        reward=mdp.reward[s, a],
        discount=1.0 - last,
        last=last,
        next_obs=jnp.roll(obs, -1, axis=0),  # what follows the last step must not matter
        memory=(),
    )
    return jax.tree.map(lambda x: x[None], stream)


def probabilities(parts, world, params):
    """Of all paths under a policy, ``[P]``."""
    mdp, states, actions, *_ = world
    look = jax.vmap(jax.vmap(partial(log_probs, parts, params)))
    table = jnp.exp(look(every_observation()))  # [H, S, A]
    chosen = table[np.arange(H), states, actions]
    moves = mdp.transition[states[:, :-1], actions[:, :-1], states[:, 1:]]
    return mdp.initial[states[:, 0]] * jnp.prod(moves, axis=1) * jnp.prod(chosen, axis=1), table


def true_values(world, table):
    """``V_t^π(s)`` of a policy ``[H, S, A]`` that knows the time, ``[H, S]``."""
    mdp, v, rows = world[0], jnp.zeros(S), []
    for t in reversed(range(H)):
        v = jnp.sum(table[t] * (mdp.reward + mdp.discount * mdp.transition @ v), axis=1)
        rows.append(v)
    return jnp.stack(rows[::-1])


def laws(parts, world):
    """Meta-parameters, paths' probabilities under μ, all batches, and the values of π and of μ; compiled as one."""

    @jax.jit
    def found():
        p, table_mu = probabilities(parts, world, world[4])
        _, table = probabilities(parts, world, world[3])
        batches = jax.vmap(lambda path: data_of(parts, world, path))(jnp.arange(len(world[1])))
        values = (true_values(world, x) for x in (table, table_mu))
        return parts.init(jax.random.key(0), HYPER), p, batches, *values

    return found()


def weights_of(w):
    """A linear value as one vector: of the observation and a constant."""
    return jnp.append(w["head"]["params"]["kernel"][:, 0], w["head"]["params"]["bias"])


def from_weights(w):
    return {"body": {}, "head": {"params": {"kernel": w[:-1, None], "bias": w[-1:]}}}


def by_hand(world, parts, w, path, num_updates):
    """Weights after K steps of importance-weighted TD(λ) on a path, written out with matrices."""
    pi = world[3]
    data = jax.tree.map(lambda x: x[0], data_of(parts, world, path))
    x = jnp.concatenate([data.timestep.obs, jnp.ones((H, 1))], axis=1)
    log_pi = jax.vmap(lambda o, a: log_probs(parts, pi, o)[a])(data.timestep.obs, data.action)
    rho = jnp.exp(log_pi - data.log_prob)
    # Two steps: δ_1 ends the path, δ_0 looks at the value of the second step.
    for _ in range(num_updates):
        v = x @ w
        delta_1 = data.reward[1] - v[1]
        delta_0 = data.reward[0] + 0.9 * v[1] - v[0]
        error_1 = rho[1] * delta_1
        error_0 = rho[0] * delta_0 + 0.9 * 0.7 * jnp.minimum(rho[0], 1.0) * error_1
        w = w + 0.6 * (error_0 * x[0] + error_1 * x[1]) / H
    return w


def test_the_updates_and_their_meta_gradient_are_those_of_the_enumerated_mdp(x64, world):
    """``E_D E_D' ∇ loss`` is the exact gradient of ``E_D ½ sum d_μ (V_{w_K} - V^π)²``, to rounding."""
    parts, config = parts_of()
    _, states, _, pi, mu, _ = world
    meta, p, _, v_pi, _ = laws(parts, world)
    w0 = np.random.default_rng(4).normal(size=H * S + 1)
    paths = np.arange(len(states))

    def lived(w):
        """Weights after K steps on each path, ``[P, F]``, as the library has them."""
        agent = Agent(from_weights(w), pi, mu)

        def on(path):
            history = parts.adapt(meta, agent, data_of(parts, world, path), num_updates=3)
            return weights_of(jax.tree.map(lambda x: x[-1], history))

        return jax.vmap(on)(paths)

    def wanted(w):
        after = jax.vmap(lambda path: by_hand(world, parts, w, path, 3))(paths)
        there = jax.nn.one_hot(states, S)
        visits = jnp.einsum("p,pts->ts", p, there)
        v = jnp.einsum("tsf,pf->pts", every_observation(), after[:, :-1])
        v = v + after[:, -1, None, None]
        return 0.5 * jnp.einsum("p,ts,pts->", p, visits, (v - v_pi[None]) ** 2) / H

    def estimated(w, config=config):
        agent = Agent(from_weights(w), pi, mu)

        def loss(after, path):
            return module.prediction_error(
                parts, from_weights(after), agent, data_of(parts, world, path), meta.hyper, config
            )

        losses = jax.vmap(lambda w: jax.vmap(partial(loss, w))(paths))(lived(w))
        return jnp.einsum("d,e,de->", p, p, losses)

    by_library, by_matrices = (
        jax.jit(lived)(w0),
        jax.jit(jax.vmap(lambda path: by_hand(world, parts, w0, path, 3)))(paths),
    )
    np.testing.assert_allclose(by_library, by_matrices, rtol=1e-12, atol=1e-12)
    found, right = jax.jit(jax.grad(estimated))(w0), jax.jit(jax.grad(wanted))(w0)
    np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-13)
    # Targets that are known to be biased are found to be.
    biased = Config(**LINEAR, outer_target="vtrace", rho_bar=1.0)
    found = jax.jit(jax.grad(partial(estimated, config=biased)))(w0)
    assert np.abs(found - right).max() > 1e-2 * np.abs(right).max()


def test_semi_and_residual_gradients_are_their_formulas(x64, world):
    """One step of TD(λ = 0) on a linear value: the derivative in w of either is known."""
    _, _, _, pi, mu, _ = world
    w0 = np.random.default_rng(4).normal(size=H * S + 1)
    path = 9
    for gradient in ("semi", "residual"):
        parts, _ = parts_of(gradient=gradient, target="td")

        def after(w, parts=parts):
            meta = parts.init(jax.random.key(0), HYPER._replace(trace_lambda=0.0))
            data = data_of(parts, world, path)
            agent = Agent(from_weights(w), pi, mu)
            history = parts.adapt(meta, agent, data, num_updates=1)
            return weights_of(jax.tree.map(lambda w: w[-1], history))

        data = jax.tree.map(np.asarray, jax.jit(data_of, static_argnums=0)(parts, world, path))
        x = np.concatenate([data.timestep.obs[0], np.ones((H, 1))], axis=1)
        d = x - 0.9 * np.stack([x[1], np.zeros_like(x[1])])  # -∂δ/∂w, the path ends after two steps
        delta = data.reward[0] - d @ w0
        moved = x if gradient == "semi" else d
        moved_to, found = jax.jit(lambda w, after=after: (after(w), jax.jacobian(after)(w)))(w0)
        np.testing.assert_allclose(moved_to, w0 + 0.6 * delta @ moved / H, rtol=1e-12)
        jacobian = np.eye(len(w0)) - 0.6 * moved.T @ d / H
        np.testing.assert_allclose(found, jacobian, rtol=1e-12, atol=1e-12)


TARGETS = {
    "importance_sampling": dict(target="importance_sampling"),
    "weighted_importance_sampling": dict(target="weighted_importance_sampling"),
    "vtrace": dict(rho_bar=1.0),
    "td": dict(target="td"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_leads_where_it_should(name, x64, world):
    """Many steps on a batch that holds every path as often as μ takes it: importance sampling ends at V^π,
    uncorrected TD at V^μ, V-trace with a bar at neither."""
    parts, _ = parts_of(**TARGETS[name])
    _, _, _, pi, mu, _ = world
    meta, p, batches, v_pi, v_mu = laws(parts, world)
    counts = np.round(np.asarray(p) * 3000).astype(int)
    data = jax.tree.map(lambda x: np.repeat(np.asarray(x)[:, 0], counts, axis=0), batches)

    @jax.jit
    def predicted(w):
        after = parts.adapt(meta, Agent(from_weights(w), pi, mu), data, num_updates=400)
        return parts.predict(jax.tree.map(lambda x: x[-1], after), every_observation())

    v = predicted(np.zeros(H * S + 1))
    assert np.abs(v_pi - v_mu).max() > 0.1
    if name in ("importance_sampling", "weighted_importance_sampling"):
        np.testing.assert_allclose(v, v_pi, atol=0.02)
    elif name == "td":
        np.testing.assert_allclose(v, v_mu, atol=0.02)
    else:
        assert np.abs(v - v_pi).max() > 0.03
        assert np.abs(v - v_mu).max() > 0.03


def test_policies_are_drawn_at_birth_and_the_behaviour_acts():
    family = tasks.make("tabular", num_states=3, num_actions=2)
    parts = meta_value_parts(family, Config(num_streams=200, policy="softmax_linear"))
    hyper = Hyper(policy_scale=2.0, policy_distance=1.5)

    @jax.jit
    def lived():
        meta = parts.init(jax.random.key(0), hyper)
        keys = jax.random.split(jax.random.key(1), 4000)
        agents = jax.vmap(parts.learner.init, (0, None))(keys, meta)
        agent = jax.tree.map(lambda x: x[0], agents)
        task = family.train(jax.random.key(2))
        data = parts.experience(jax.random.key(3), meta, task, agent)
        after = parts.learner.update(jax.random.key(4), meta, agent, data)
        return agents, agent, parts.log_ratio(agent, data), after

    agents, agent, log_ratio, after = jax.tree.map(np.asarray, lived())
    assert np.std(agents.target["theta"]) == pytest.approx(2.0, rel=0.02)
    assert np.std(agents.behaviour["theta"] - agents.target["theta"]) == pytest.approx(
        1.5, rel=0.02
    )
    apart = np.ravel(agents.behaviour["theta"] - agents.target["theta"])
    assert abs(np.corrcoef(np.ravel(agents.target["theta"]), apart)[0, 1]) < 0.05
    # E_μ ρ = 1 where the recorded probabilities are those of the one that acted.
    rho = np.exp(log_ratio)
    spread = np.std(rho) / rho.size**0.5
    assert abs(np.mean(rho) - 1.0) < 4 * spread
    assert spread > 1e-3
    assert all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(agent[1:]), strict=True)
    )


def test_predictions_are_measured_on_experience_that_they_were_not_made_of(monkeypatch):
    """Two batches a task, of different keys: on the steps' own batch the targets know the values."""
    whole, keys = module.meta_value_parts, []

    def with_a_spy(*arguments, **settings):
        parts = whole(*arguments, **settings)

        def experience(key, meta, task, agent):
            jax.debug.callback(lambda x: keys.append(tuple(x.tolist())), jax.random.key_data(key))
            return parts.experience(key, meta, task, agent)

        return dataclasses.replace(parts, experience=experience)

    monkeypatch.setattr(module, "meta_value_parts", with_a_spy)
    family = tasks.make("tabular", num_states=3, num_actions=2)
    algorithm = meta_value(family, Config(num_updates=1, hidden_sizes=()))

    @jax.jit
    def stepped():
        drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="train")
        return algorithm.step(jax.random.key(2), algorithm.init(jax.random.key(0)), drawn)

    jax.block_until_ready(stepped())
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 6


def test_the_behaviour_s_return_is_what_is_predicted_without_distance():
    """π = μ: nothing to correct, whatever the target."""
    family = tasks.make("tabular", num_states=3, num_actions=2)
    hyper = Hyper(policy_distance=0.0)
    values = []
    for settings in (dict(target="vtrace", c_bar=2.0), dict(target="td")):
        parts = meta_value_parts(family, Config(**settings))

        @jax.jit
        def adapted(parts=parts):
            meta = parts.init(jax.random.key(0), hyper)
            agent = parts.learner.init(jax.random.key(1), meta)
            data = parts.experience(jax.random.key(2), meta, family.train(jax.random.key(3)), agent)
            return parts.adapt(meta, agent, data, num_updates=2)

        values.append(adapted())
    for x, y in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(target="retrace"), "target='retrace' is unknown"),
        (dict(outer_target="td"), "outer_target='td' is unknown"),
        (dict(outer_policy="both"), "outer_policy='both' is unknown"),
        (dict(gradient="full"), "gradient='full' is unknown"),
        (dict(scored="first"), "scored='first' is unknown"),
        (dict(rho_bar=-1.0), "rho_bar=-1.0 must lie between 0 and inf"),
        (dict(num_updates=-1), "num_updates=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_settings_that_a_target_does_not_use_are_refused():
    for bar in ("rho_bar", "c_bar"):
        for target in ("td", "importance_sampling"):
            with pytest.raises(ValueError, match=f"{bar}=2.0 has no effect unless target or outer"):
                Config(target=target, **{bar: 2.0})
            Config(target=target, outer_target="vtrace", **{bar: 2.0})
    family, hyper = tasks.make("tabular"), Hyper(trace_lambda=0.5)
    with pytest.raises(ValueError, match="trace_lambda=0.5 has no effect without V-trace and TD"):
        meta_value(family, Config(target="importance_sampling"), hyper)
    for target in ("td", "vtrace"):
        meta_value(family, Config(target=target), hyper)
    with pytest.raises(ValueError, match="adapts='haed' is unknown: did you mean 'head'"):
        meta_value(family, Config(adapts="haed"))


def test_bad_numbers_are_refused():
    family = tasks.make("tabular")
    with pytest.raises(ValueError, match="trace_lambda=1.5 must lie between 0 and 1"):
        meta_value(family, hyper=Hyper(trace_lambda=1.5))
    with pytest.raises(ValueError, match="policy_distance=-1 must lie between 0 and"):
        meta_value(family, hyper=Hyper(policy_distance=-1))


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_meta_learned_values_are_closer_after_three_steps_than_the_mean_task_s():
    """Exact squared errors on held-out MDPs; the mean task's values take the same three steps, of the best of
    six sizes on these very tasks."""
    family = tasks.make("latent_tabular")
    config = Config(num_updates=3, hidden_sizes=(32,), policy="softmax_linear")
    hyper = Hyper(policy_scale=0.5, policy_distance=0.2, learning_rate=1e-2)

    def learned(config):
        algorithm = meta_value(family, config, hyper)

        def train(key):
            run = training.begin(key, algorithm=algorithm)
            return training.advance(
                run,
                jnp.asarray(400, jnp.int32),
                algorithm=algorithm,
                family=family,
                num_tasks=20,
                max_updates=400,
            )[0].state.meta

        return jax.jit(train)(jax.random.key(0))

    parts = meta_value_parts(family, config)
    every = jnp.eye(20)

    @jax.jit
    def error(meta):
        def of_task(key, task):
            birth_key, data_key = jax.random.split(key)
            agent = parts.learner.init(birth_key, meta)
            data = parts.experience(data_key, meta, task, agent)
            after = parts.adapt(meta, agent, data, num_updates=3)
            table = jnp.exp(jax.vmap(partial(log_probs, parts, agent.target))(every))
            v = state_values(task, table, meta.hyper.discount)
            return jnp.mean((parts.predict(jax.tree.map(lambda x: x[-1], after), every) - v) ** 2)

        drawn = tasks.sample_tasks(jax.random.key(7), family, 500, split="test")
        return jnp.mean(jax.vmap(of_task)(jax.random.split(jax.random.key(8), 500), drawn))

    meta_learned = error(learned(config))
    mean_task = learned(Config(**{**vars(config), "num_updates": 0, "step_sizes": "fixed"}))
    controls = [
        error(mean_task._replace(hyper=mean_task.hyper._replace(step_size=jnp.asarray(b))))
        for b in np.geomspace(0.03, 3.0, 6)
    ]
    best = np.nanmin(np.asarray(controls))
    assert meta_learned < 0.7 * best, (meta_learned, best)
