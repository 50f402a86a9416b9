import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments import spaces
from rich.console import Console

from jaxmeta import networks, rollouts, tasks
from jaxmeta.algorithms.learned_objective import (
    Config,
    Hyper,
    learned_objective,
    rule_of,
)
from jaxmeta.estimators.returns import gae, td_errors
from jaxmeta.learners import disco, learned_optimizers, update_rules
from jaxmeta.learners.update_rules import rule_learner
from jaxmeta.meta_updates import windows
from jaxmeta.rollouts import lifelong
from jaxmeta.runs import training
from tests.algorithms.test_algorithms import assert_equal_avals, flat
from tests.probes import thorough

OUTERS = ("meta_gradient", "es", "pes")
SMALL = dict(num_streams=2, num_steps=5, num_predictions=3, memory_size=4, rematerialize=False)


FAMILY = tasks.make("tabular", num_states=3, num_actions=2, horizon=5)


@pytest.fixture(scope="module")
def family():
    return FAMILY


@functools.lru_cache
def drawing(family, num_tasks):
    return jax.jit(lambda key: tasks.sample_tasks(key, family, num_tasks, split="train"))


def draw(family, num_tasks, key=1):
    return drawing(family, num_tasks)(jax.random.key(key))


@functools.lru_cache
def programs(outer):
    """``(first state, compiled step)`` of three agents. LPG's meta-gradient is held to differences below."""
    objective = "lpg" if outer == "pes" else "lpo"
    sizes = {x: SMALL[x] for x in SMALL if objective == "lpg" or x != "num_predictions"}
    config = Config(
        objective=objective,
        outer=outer,
        num_agents=3,
        lifespan=6,
        num_updates=2,
        num_epochs=2,
        **sizes,
    )
    algorithm = learned_objective(FAMILY, config)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    return jax.jit(algorithm.init)(jax.random.key(0)), step


@pytest.mark.parametrize("outer", thorough(OUTERS, ("meta_gradient",)))
def test_protocol(family, outer):
    """One compilation; a state that keeps its type; the rule moves; a broken agent is left out, counted
    and born again; with every task broken the rule stays as it is."""
    state, step = programs(outer)
    drawn = draw(family, 3)
    after, metrics = step(jax.random.key(2), state, drawn)
    assert_equal_avals(jax.eval_shape(lambda: after), jax.eval_shape(lambda: state))
    assert all(x.shape == () for x in metrics.values())
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    rounds = {"meta_gradient": 3, "es": 3 * 2, "pes": 2 * 2}[outer]
    assert metrics["env_steps"] == 3 * 2 * 5 * rounds
    assert after.num_updates == 1
    assert jnp.all(jnp.isfinite(flat(after.meta.params)))
    assert not jnp.allclose(flat(after.meta.params), flat(state.meta.params), atol=1e-7)

    life = after.members.life
    broken_agent = jax.tree.map(np.array, life.agent.params)
    for x in jax.tree.leaves(broken_agent):
        x[0] = np.nan
    broken = after._replace(
        members=after.members._replace(
            life=life._replace(agent=life.agent._replace(params=broken_agent))
        )
    )
    partly, metrics = step(jax.random.key(3), broken, drawn)
    assert metrics["skipped_tasks"] == 1
    assert metrics["skipped_updates"] == 0
    assert jnp.isfinite(metrics["reward/step"])
    assert jnp.all(jnp.isfinite(flat(partly.meta.params)))
    healed, metrics = step(jax.random.key(4), partly, drawn)
    assert metrics["skipped_tasks"] == 0
    assert jnp.all(jnp.isfinite(flat(healed.members.life.agent.params)))

    over = np.full_like(healed.members.life.age, 6)
    ended = healed._replace(
        members=healed.members._replace(life=healed.members.life._replace(age=over))
    )
    hopeless = drawn.replace(reward=np.full_like(drawn.reward, np.nan))
    same, metrics = step(jax.random.key(5), ended, hopeless)
    assert metrics["skipped_tasks"] == 3
    assert metrics["skipped_updates"] == 1
    assert same.num_updates == healed.num_updates
    for x, y in zip(
        jax.tree.leaves((same.meta, same.optimizer)),
        jax.tree.leaves((healed.meta, healed.optimizer)),
        strict=True,
    ):
        assert jnp.array_equal(x, y)


@pytest.mark.parametrize("outer", thorough(OUTERS, ("pes",)))
def test_agents_live_on_and_are_born_again_in_what_comes_in(family, outer):
    """Ages are spread at first, so that each meta-update sees all of them."""
    state, step = programs(outer)

    def ages(state):
        age = np.asarray(state.members.life.age)
        return (age[:, 0] if outer == "pes" else age).tolist()

    def rewards(state):
        table = np.asarray(state.members.life.task.reward)
        if outer == "pes":
            assert np.array_equal(table[:, 0], table[:, 1])
        return table[:, 0] if outer == "pes" else table

    assert ages(state) == [0, 2, 4]
    for i, expected in enumerate(([2, 4, 6], [4, 6, 2], [6, 2, 4], [2, 4, 6])):
        incoming = draw(family, 3, key=10 + i)
        before, reborn = state, [age == 6 for age in ages(state)]
        state, _ = step(jax.random.key(i), state, incoming)
        assert ages(state) == expected
        for m in range(3):
            source = np.asarray(incoming.reward) if reborn[m] else rewards(before)
            assert np.array_equal(rewards(state)[m], source[m])


@pytest.mark.slow
@pytest.mark.parametrize("outer", ["meta_gradient", "pes"])
def test_no_agent_leaks_into_another(x64, family, outer):
    """The gradient is a sum of a term for each agent, and an agent that changes changes no other."""
    config = Config(
        outer=outer, num_agents=4, lifespan=2, num_updates=2, tasks_per_chunk=2, **SMALL
    )
    hyper = Hyper(max_grad_norm=1e9) if outer == "meta_gradient" else Hyper()
    algorithm = learned_objective(family, config, hyper, optimizer=optax.sgd)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    over = jnp.full_like(state.members.life.age, 2)
    state = state._replace(
        members=state.members._replace(life=state.members.life._replace(age=over))
    )
    step = jax.jit(algorithm.step)
    drawn, other = draw(family, 4), draw(family, 4, key=9)

    def mixed(which):
        chosen = jax.tree.map(
            lambda x, y: jnp.where(jnp.asarray(which).reshape(4, *[1] * (x.ndim - 1)), y, x),
            drawn,
            other,
        )
        after, _ = step(jax.random.key(2), state, chosen)
        return flat(after.meta.params), after.members.life.agent.params

    none, agents = mixed([False] * 4)
    both, _ = mixed([True] * 4)
    for m in range(4):
        alone, changed = mixed([i == m for i in range(4)])
        rest, _ = mixed([i != m for i in range(4)])
        assert jnp.max(jnp.abs(alone - none)) > 1e-9
        scale = jnp.max(jnp.abs(alone - none))
        np.testing.assert_allclose(alone - none, both - rest, rtol=1e-5, atol=1e-7 * scale)
        for x, y in zip(jax.tree.leaves(changed), jax.tree.leaves(agents), strict=True):
            same = [bool(jnp.array_equal(x[i], y[i])) for i in range(4)]
            assert all(same[i] for i in range(4) if i != m)


def test_meta_gradient_is_that_of_finite_differences(x64, family):
    """Through both updates of a window, on the same experience: the loss written out again, moved by hand
    along a random direction. The second round is judged by a critic that has seen the first, and the next
    window's by one that has seen both."""
    config = Config(num_agents=1, lifespan=4, num_updates=2, **SMALL | dict(rematerialize=True))
    hyper = Hyper(step_size=3.0, max_grad_norm=1e9, learning_rate=1.0)
    algorithm = learned_objective(family, config, hyper, optimizer=optax.sgd)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    grown = state.members.life._replace(age=state.members.life.age + 2)  # newborns get a new critic
    state = state._replace(members=state.members._replace(life=grown))
    drawn = draw(family, 1)
    after, _ = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    meta, unravel = state.meta, jax.flatten_util.ravel_pytree(state.meta.params)[1]
    gradient = flat(meta.params) - flat(after.meta.params)

    learned = rule_of(config)
    parts = rule_learner(learned, family)
    setup = rollouts.Setup(parts.learner, family.env, num_streams=2, num_steps=5)
    member = jax.tree.map(lambda x: x[0], state.members)
    critic = member.critic.params

    def value(obs, critic):
        head = critic["head"]["params"]
        return obs @ head["kernel"][:, 0] + jnp.broadcast_to(head["bias"], obs.shape[:-1])

    @jax.jit
    def loss(params):
        moved = meta._replace(params=unravel(params))
        _, _, live_key, after_key = jax.random.split(jax.random.split(jax.random.key(2), 1)[0], 4)
        life, history = lifelong.live(live_key, moved, member.life, setup=setup, num_updates=2)
        _, last = rollouts.collect(
            after_key, moved, life.task, life.agent, life.streams, setup=setup
        )
        second = jax.tree.map(lambda x: x[1], history)
        total, judge, fit = 0.0, critic, optax.adam(0.05).init(critic)
        for agent, data in ((second.agent, second.trajectories), (life.agent, last)):
            discount = meta.hyper.discount * data.discount
            v, v_next = (value(obs, judge) for obs in (data.timestep.obs, data.next_obs))
            delta = td_errors(data.reward, discount, v=v, v_next=v_next)
            advantage = jax.vmap(partial(gae, lambda_=0.95))(delta, discount, last=data.last)
            slope = jax.grad(
                lambda critic, obs, target: jnp.mean((value(obs, critic) - target) ** 2) / 2
            )(judge, data.timestep.obs, v + advantage)
            steps, fit = optax.adam(0.05).update(slope, fit)
            judge = optax.apply_updates(judge, steps)
            log_prob = parts.outputs(agent.params, data).distribution.log_prob(data.action)
            total = total - jnp.mean(log_prob * advantage) / 2
        outputs = parts.outputs(life.agent.params, last)
        cost = learned.regularizer(moved.params, outputs, last, meta.hyper).mean()
        return total + cost, judge

    theta = flat(meta.params)
    kept = jax.tree.map(lambda x: x[0], after.members.critic.params)
    np.testing.assert_allclose(flat(kept), flat(loss(theta)[1]), rtol=1e-9)
    for key in range(3):
        direction = jax.random.normal(jax.random.key(key), theta.shape)
        high, low = (loss(theta + sign * 1e-5 * direction)[0] for sign in (1, -1))
        slope = (high - low) / 2e-5
        np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-5)


def test_a_pair_s_perturbations_add_up_until_it_is_born_again(family):
    """Mean squares by age; the first agents have other ages than newborns, and count when they are reborn."""
    state, step = programs("pes")
    hyper = state.meta.hyper
    hyper = hyper._replace(noise_std=jnp.full_like(hyper.noise_std, 0.1))
    state = state._replace(meta=state.meta._replace(hyper=hyper))
    sizes = {2: [], 4: [], 6: []}
    for i in range(103):
        state, _ = step(jax.random.key(i), state, draw(family, 3, key=i))
        if i < 3:
            continue
        leaves = [np.asarray(x).reshape(3, -1) for x in jax.tree.leaves(state.members.perturbation)]
        squares = np.mean(np.concatenate(leaves, axis=1) ** 2, axis=1)
        for age, square in zip(state.members.life.age[:, 0].tolist(), squares, strict=True):
            sizes[age].append(square)
    found = [np.mean(sizes[age]) for age in (2, 4, 6)]
    np.testing.assert_allclose(found, [0.01, 0.02, 0.03], rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(objective="lgp"), "objective='lgp' is unknown: did you mean 'lpo' or 'lpg'"),
        (dict(outer="ppes"), "outer='ppes' is unknown: did you mean 'pes'"),
        (dict(num_agents=0), "num_agents=0 must be at least 1"),
        (dict(lifespan=7, num_updates=2), "lifespan=7 must be a multiple of num_updates=2"),
        (dict(objective="lpo"), "num_epochs=1 must be at least 2 with objective='lpo'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_what_does_not_fit_is_named(family):
    with pytest.raises(ValueError, match="noise_std=0.0 must lie between"):
        learned_objective(family, hyper=Hyper(noise_std=0.0))
    algorithm = learned_objective(family, Config(num_agents=3, **SMALL))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="num_tasks=2 must be num_agents=3"):
        jax.eval_shape(algorithm.step, jax.random.key(1), state, draw(family, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize(
    ("outer", "learning_rate", "meta_updates"), [("meta_gradient", 3e-3, 100), ("pes", 1e-2, 150)]
)
def test_a_rule_is_found(outer, learning_rate, meta_updates):
    """Agents earn 1.0 a step without learning, whatever a rule does that does not look at rewards, and
    about 1.9 if told the task."""
    family = tasks.make("tabular", num_states=4, num_actions=4, horizon=20, reward_noise=0.1)
    config = Config(
        outer=outer, num_agents=32, lifespan=20, num_streams=4, num_predictions=8, memory_size=16
    )
    algorithm = learned_objective(
        family, config, Hyper(step_size=20.0, learning_rate=learning_rate)
    )
    run = training.train(
        algorithm, family, training.Config(meta_updates=meta_updates, num_tasks=32)
    )
    held_out = tasks.sample_tasks(jax.random.key(1), family, 64, split="test")
    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=4, num_steps=20)

    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=4, num_steps=20)

    def rewards(key, task):
        history = rollouts.lifetime(key, run.state.meta, task, setup=setup, num_updates=20)
        return history.trajectories.reward.mean((1, 2))

    curve = jax.jit(jax.vmap(rewards))(jax.random.split(jax.random.key(2), 64), held_out).mean(0)
    assert abs(curve[0] - 1.0) < 0.15
    assert curve[-1] > 1.4


@pytest.mark.slow
def test_a_rule_of_one_s_own_is_learned_by_any_estimator(family):
    """The policy gradient times a learned number: evolution moves that number."""
    scaled = update_rules.a2c()._replace(
        init=lambda key: {"scale": jnp.ones(())},
        loss=lambda params, outputs, data, targets, hyper: (
            -params["scale"] * outputs.distribution.log_prob(data.action) * targets.advantage
        ),
    )
    sizes = dict(num_agents=2, lifespan=2, num_updates=2, num_streams=2, num_steps=5)
    algorithm = learned_objective(
        family,
        Config(**sizes),
        Hyper(learning_rate=0.1),
        rule=scaled,
        estimator=windows.persistent_evolution_strategy,
    )
    state = jax.jit(algorithm.init)(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(jax.random.key(1), state, draw(family, 2))
    assert metrics["skipped_tasks"] == 0
    moved = after.meta.params["scale"] - state.meta.params["scale"]
    np.testing.assert_allclose(abs(moved), 0.1, rtol=1e-3)  # Adam's first step


SMALL_DISCO = disco.disco(sizes=disco.Sizes(num_predictions=3, hidden_size=3, memory_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("outer", OUTERS)
def test_the_meta_network_of_discorl_is_learned(family, outer):
    """Every part of it moves but the networks of the memory, which speak from an agent's third update on."""
    sizes = dict(num_agents=2, lifespan=4, num_updates=2, num_streams=2, num_steps=4)
    config = Config(outer=outer, hidden_sizes=(4,), **sizes)
    hyper = Hyper(step_size=0.1)
    told = dict(rule=SMALL_DISCO, agent_optimizer=disco.adam)
    algorithm = learned_objective(family, config, hyper, **told)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(jax.random.key(1), state, draw(family, 2))
    assert metrics["skipped_tasks"] == 0
    for name in ("lstm/linear_4/w", "lstm/sequential/conv1_d/w", "lstm/linear/b"):
        moved = after.meta.params[name] - state.meta.params[name]
        assert jnp.all(jnp.isfinite(moved))
        assert jnp.any(moved != 0), name


LIVES = dict(num_agents=2, lifespan=4, num_updates=2, num_streams=2, num_steps=4)


def with_open(outer, rule=update_rules.dpo, **settings):
    """OPEN beside a rule, on two agents."""
    told = dict(rule=rule(), agent_optimizer=learned_optimizers.open_optimizer(memory_size=2))
    config = Config(outer=outer, hidden_sizes=(3,), num_epochs=2, **LIVES | settings)
    return learned_objective(FAMILY, config, Hyper(step_size=100.0), **told)


@pytest.mark.slow
@pytest.mark.parametrize("outer", OUTERS)
def test_an_optimizer_is_learned_alone_or_with_a_rule(family, outer):
    lpo = partial(update_rules.lpo, hidden_size=2)
    if outer == "meta_gradient":
        with pytest.raises(
            ValueError, match="outer='meta_gradient' must be 'es' or 'pes' for a rule"
        ):
            with_open(outer, lpo)
    for rule in (update_rules.dpo,) if outer == "meta_gradient" else (update_rules.dpo, lpo):
        algorithm = with_open(outer, rule)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
        chex.clear_trace_counter()
        before = state
        for key in (1, 2):
            state, metrics = step(jax.random.key(key), state, draw(family, 2, key))
            assert metrics["skipped_tasks"] == 0
        assert_equal_avals(jax.eval_shape(lambda s=state: s), jax.eval_shape(lambda s=before: s))
        assert np.max(np.abs(state.members.life.age)) == 4
        parts = {name: flat(state.meta.params[name]) for name in ("rule", "optimizer")}
        assert parts["rule"].size == (0 if rule is update_rules.dpo else 18)
        for name, now in parts.items():
            assert np.all(np.isfinite(now))
            was = flat(before.meta.params[name])
            assert now.size == 0 or np.max(np.abs(now - was)) > 1e-4, name


@pytest.mark.slow
def test_a_run_of_an_optimizer_resumes_bit_for_bit(family, tmp_path):
    algorithm = with_open("pes")
    quiet = dict(console=Console(quiet=True))

    def config(updates):
        return training.Config(meta_updates=updates, num_tasks=2, checkpoint_every=1)

    whole = training.train(algorithm, family, config(3), folder=tmp_path / "whole", **quiet)
    folder = tmp_path / "parts"
    training.train(algorithm, family, config(2), folder=folder, **quiet)
    resumed = training.train(algorithm, family, config(3), folder=folder, resume=True, **quiet)
    chex.assert_trees_all_equal(*(jax.random.key_data(run.key) for run in (resumed, whole)))
    chex.assert_trees_all_equal(resumed.state, whole.state)


@pytest.mark.slow
@pytest.mark.parametrize("outer", ["es", "pes"])
def test_memory_does_not_grow_with_a_life(family, outer):
    """Through an optimiser that is learned: 10 and 100 updates, in windows of five."""

    def temporary_bytes(lifespan):
        algorithm = with_open(outer, lifespan=lifespan, num_updates=5)

        def live(key, state):
            def window(i, state):
                task_key, step_key = jax.random.split(jax.random.fold_in(key, i))
                drawn = tasks.sample_tasks(task_key, family, 2, split="train")
                return algorithm.step(step_key, state, drawn)[0]

            return jax.lax.fori_loop(0, lifespan // 5, window, state)

        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        compiled = jax.jit(live).lower(jax.random.key(0), state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(10) == temporary_bytes(100)


@pytest.mark.slow
def test_agents_of_a_rule_that_reads_the_time_know_their_age(family):
    sizes = dict(num_agents=2, lifespan=4, num_updates=2, num_streams=2, num_steps=4)
    rule = update_rules.lpg(num_predictions=3, memory_size=2, time_aware=True)
    algorithm = learned_objective(family, Config(outer="es", **sizes), rule=rule)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    # The second agent is in the middle of its life, but a newborn of its rule.
    for key, ages in ((1, [2, 2]), (2, [4, 2])):
        state, _ = step(jax.random.key(key), state, draw(family, 2))
        assert state.members.life.agent.age.tolist() == ages


@pytest.mark.parametrize(
    ("config", "hyper", "objects", "message"),
    [
        (dict(objective="lpo", num_epochs=2, num_predictions=3), {}, {}, "num_predictions=3"),
        (dict(objective="lpo", num_epochs=2), dict(policy_target_cost=1.0), {}, "policy_target_c"),
        ({}, dict(entropy_cost=0.1), {}, "entropy_cost=0.1 has no effect with objective='lpg'"),
        ({}, dict(noise_std=0.1), {}, "noise_std=0.1 has no effect with outer='meta_gradient'"),
        (dict(outer="es"), dict(max_grad_norm=2.0), {}, "max_grad_norm=2.0 has no effect with"),
        (dict(memory_size=4), {}, dict(rule=update_rules.lpg()), "memory_size=4 has no effect"),
        (dict(num_epochs=2), {}, dict(rule=SMALL_DISCO), "num_epochs=2 has no effect with DiscoRL"),
        ({}, dict(entropy_cost=0.1), dict(rule=SMALL_DISCO), "entropy_cost=0.1 has no effect"),
        ({}, {}, dict(rule=SMALL_DISCO), "hidden_sizes=.* must hold at least one"),
        (
            dict(hidden_sizes=(4,)),
            {},
            dict(rule=SMALL_DISCO, policy=networks.categorical_mlp((16,), spaces.Discrete(5))),
            "policy must be None with DiscoRL",
        ),
        (
            dict(hidden_sizes=(4,)),
            {},
            dict(rule=SMALL_DISCO, agent_optimizer=learned_optimizers.open_optimizer()),
            "agent_optimizer must make optax optimisers with DiscoRL",
        ),
        (
            dict(outer="es"),
            {},
            dict(estimator=windows.policy_gradient),
            "outer='es' has no effect beside estimator",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(family, config, hyper, objects, message):
    with pytest.raises(ValueError, match=message):
        learned_objective(family, Config(**config), Hyper(**hyper), **objects)
