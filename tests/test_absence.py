"""A stream with a number that is not finite, and a task of such streams, are as if they were not there."""

import dataclasses
import functools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import learners, rollouts, tasks
from jaxmeta.algorithms import ALGORITHMS, maml, meta_value
from jaxmeta.estimators import streams, surrogates
from jaxmeta.learners import update_rules
from jaxmeta.rollouts import lifelong
from jaxmeta.tasks.family import sample_tasks
from tests.probes import broken, made_up_streams, thorough, without

NUM_STREAMS, NUM_STEPS = 4, 6
FAMILY = tasks.make("tabular", num_states=3, num_actions=2, horizon=NUM_STEPS)
POLICY = dict(policy="softmax_linear")
LINEAR = dict(**POLICY, hidden_sizes=())  # policy and value


def learning(learner, meta, data, times=1):
    """The parameters that an agent ends with, and the derivative in ``meta`` of a function of them."""

    # flax draws float32, in which a last bit may go either way.
    meta = exact(meta)

    def parameters(meta):
        agent = exact(learner.init(jax.random.key(1), meta))
        for _ in range(times):
            agent = learner.update(jax.random.key(2), meta, agent, data)
        agent = getattr(agent, "value", getattr(agent, "params", agent))
        return jax.flatten_util.ravel_pytree(agent)[0]

    def mixed(meta):
        found = parameters(meta)
        return found @ jnp.cos(1.0 + jnp.arange(found.size)), found

    gradient, found = jax.grad(mixed, has_aux=True)(meta)
    return found, gradient


def exact(tree):
    """``tree`` with float64 for float32."""
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, tree)


def algorithm_s(name, *, times=1, **settings):
    """Of the learner of an algorithm."""

    def update(data):
        module = ALGORITHMS[name]
        config = module.Config(num_streams=data.reward.shape[0], **settings)
        algorithm = getattr(module, name)(FAMILY, config)
        return learning(algorithm.learner, algorithm.init(jax.random.key(0)).meta, data, times)

    return update


def inner_steps(**settings):
    """Of every surrogate, from one beginning."""

    def update(data):
        found = {}
        for name in surrogates.SURROGATES:
            config = maml.Config(inner_surrogate=name, **settings, **POLICY)
            parts = learners.gradient_learner(FAMILY, config)
            meta = parts.init(jax.random.key(0), maml.Hyper())
            found[name] = parts.learner.update(jax.random.key(1), meta, meta.params, data)
        return found

    return update


def tunable(**settings):
    def update(data):
        config = learners.actor_critic.Config(
            num_streams=data.reward.shape[0],
            learns=learners.actor_critic.LEARNABLE,
            **LINEAR | settings,
        )
        parts = learners.actor_critic_learner(FAMILY, config)
        hyper = learners.actor_critic.Hyper(
            outer_value_cost=0.5, outer_entropy_cost=0.1, step_size=0.3
        )
        meta = parts.init(jax.random.key(0), hyper)
        agent = parts.learner.init(jax.random.key(1), meta)
        outer = jax.value_and_grad(parts.outer_loss)(agent.params, data, meta.hyper)
        return learning(parts.learner, meta, data), outer

    return update


def followed(rule, num_epochs=1):
    def update(data):
        parts = update_rules.rule_learner(rule, FAMILY, num_epochs=num_epochs)
        hyper = ALGORITHMS["learned_objective"].Hyper(entropy_cost=0.1)
        hyper = jax.tree.map(jnp.asarray, hyper)
        meta = update_rules.Meta(rule.init(jax.random.key(0)), hyper)
        return learning(parts.learner, meta, data)

    return update


def predictions(data):
    """Of meta-learned values: an update by each target, and the error by each outer target before it."""
    config = meta_value.Config(**LINEAR)
    parts = meta_value.meta_value_parts(FAMILY, config)
    meta = parts.init(jax.random.key(0), meta_value.Hyper())
    agent = parts.learner.init(jax.random.key(1), meta)
    found = {}
    for target in meta_value.TARGETS:
        other = meta_value.meta_value_parts(FAMILY, dataclasses.replace(config, target=target))
        found[target] = other.learner.update(jax.random.key(2), meta, agent, data).value
    for target in meta_value.OUTER_TARGETS:
        error = partial(meta_value.prediction_error, parts, agent=agent, data=data)
        judged = dataclasses.replace(config, outer_target=target)
        error = partial(error, hyper=meta.hyper, config=judged)
        found[f"outer {target}"] = jax.value_and_grad(error)(agent.value)
    return found


def replayed(data):
    """The meta-objective of off-policy learners, whose values are a number times what is observed."""
    data, good = streams.without_broken_streams(data)

    def loss(scale):
        v = scale * jnp.sum(data.timestep.obs, axis=-1)
        hyper = ALGORITHMS["meta_actor_critic"].Hyper()
        return learners.replay.outer_loss(scale * data.log_prob, data, good, v, v / 2, hyper)[0]

    return jax.value_and_grad(loss)(jnp.asarray(1.5))


def corrected(sampling_correction):
    """E-MAML's loss of a lifetime of one update, and its meta-gradient."""

    def update(data):
        config = maml.Config(
            num_streams=data.reward.shape[0],
            sampling_correction=sampling_correction,
            inner_surrogate="score",
            **POLICY,
        )
        parts = learners.gradient_learner(FAMILY, config)
        start = parts.init(jax.random.key(0), maml.Hyper())
        reverse = jax.tree.map(lambda x: x[::-1], data)
        rounds = jax.tree.map(lambda *x: jnp.stack(x), data, reverse)

        def loss(params):
            meta = start._replace(params=params)
            history = rollouts.replay(jax.random.key(1), meta, rounds, learner=parts.learner)
            return maml.meta_loss(meta, history, parts, config)

        return jax.value_and_grad(loss)(start.params)

    return update


UPDATES = {
    "inner steps": inner_steps(),
    "inner steps, normalised, by time": inner_steps(normalize=True, baseline="time"),
    "MAML": algorithm_s("maml", normalize=True, **POLICY),
    "E-MAML": corrected("score"),
    "E-MAML, leave-one-out": corrected("leave_one_out"),
    "tunable": tunable(leave_one_out=True, normalize=True),
    "LIRPG": tunable(
        outer_value=True, intrinsic_reward=True, hidden_sizes=(3,), value_targets="monte_carlo"
    ),
    "LPG": followed(update_rules.lpg(num_predictions=3, memory_size=3)),
    "LPO": followed(update_rules.lpo(hidden_size=3), num_epochs=2),
    "A2C": followed(update_rules.a2c()),
    "Retrace": algorithm_s("meta_q", times=2, hidden_sizes=()),
    "tree-backup": algorithm_s("meta_q", trace="tree_backup", hidden_sizes=()),
    "actor-critic": algorithm_s("meta_actor_critic", times=2, **LINEAR),
    "off-policy objective": replayed,
    "values": predictions,
    "weighted": algorithm_s("meta_value", target="weighted_importance_sampling", **LINEAR),
    "weighted, residual": algorithm_s(
        "meta_value", target="weighted_importance_sampling", gradient="residual", **LINEAR
    ),
}
"""What learners make of streams ``[N, T]``: functions ``data -> tree``, finite whatever is broken."""
QUICK_UPDATES = ("inner steps", "LPO", "weighted")


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


@pytest.mark.parametrize("name", thorough(UPDATES, QUICK_UPDATES))
def test_an_update_with_a_broken_stream_is_the_update_without_it(x64, name):
    """A reward, an observation or a last successor that is not finite costs its stream and nothing else.
    Where all others are broken what is left is finite."""
    data = made_up_streams()
    faults = [("reward", jnp.nan), ("obs", -jnp.inf), ("successor", jnp.nan)]
    given = [data, *(broken(data, 1, *fault) for fault in faults)]
    alone = functools.reduce(lambda x, stream: broken(x, stream, *faults[0]), (0, 2, 3), data)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *given, alone)
    # Both under a vmap: unoptimised programs compute a batch's exponentials in other steps than one's own.
    update = jax.jit(jax.vmap(lambda data: flat(UPDATES[name](data))))
    found = update(stacked)
    fewer = update(jax.tree.map(lambda x: x[None], without(data, 1)))[0]
    size = jnp.max(jnp.abs(fewer))
    for mended in found[1:-1]:
        np.testing.assert_allclose(mended, fewer, rtol=1e-10, atol=1e-11 * size)
    assert jnp.max(jnp.abs(found[0] - fewer)) > 1e-6 * size
    assert jnp.all(jnp.isfinite(found[-1]))


def variant(name, hyper=(), **settings):
    """An algorithm of small sizes, whose steps are as large as what they are made of."""

    def make(num_tasks):
        module = ALGORITHMS[name]
        sizes = dict(num_streams=NUM_STREAMS, num_steps=NUM_STEPS)
        if name in ("meta_gradient", "learned_objective"):
            sizes |= dict(num_agents=num_tasks)
        config = module.Config(**sizes | settings)
        plain = {} if name == "maml_trpo" else dict(optimizer=optax.sgd)
        return getattr(module, name)(FAMILY, config, module.Hyper(**dict(hyper)), **plain)

    return make


LIVES = dict(lifespan=4, num_updates=2)
LPG = dict(num_predictions=3, memory_size=3) | LIVES
# A perturbation that changes no action would hide what it earns.
LOUD = dict(noise_std=1.0, step_size=30.0)
STEPS = {
    "E-MAML": variant(
        "maml",
        sampling_correction="score",
        inner_surrogate="score",
        num_updates=2,
        outer_updates="all",
        **POLICY,
    ),
    "ProMP": variant("promp", dict(kl_cost=1.0), num_epochs=2, normalize=True, **POLICY),
    "MAML-TRPO": variant("maml_trpo", **POLICY),
    "iMAML": variant("imaml", **POLICY),
    "Reptile": variant("reptile", num_updates=1, **POLICY),
    "ES": variant("es", population_size=4, **POLICY),
    "Retrace": variant("meta_q", num_updates=2, hidden_sizes=()),
    "actor-critic": variant("meta_actor_critic", num_updates=2, **LINEAR),
    "values": variant("meta_value", target="weighted_importance_sampling", **LINEAR),
    "meta-gradients": variant("meta_gradient", leave_one_out=True, normalize=True, **LINEAR),
    "BMG": variant(
        "meta_gradient", dict(outer_kl_cost=0.5), outer="bootstrap", num_target_updates=2, **LINEAR
    ),
    "LPG": variant("learned_objective", dict(step_size=30.0), **LPG),
    "LPG by ES": variant("learned_objective", LOUD, outer="es", **LPG),
    "LPO by PES": variant(
        "learned_objective",
        LOUD,
        objective="lpo",
        outer="pes",
        num_epochs=2,
        memory_size=3,
        **LIVES,
    ),
}
QUICK = ("Reptile",)


@pytest.mark.parametrize("name", thorough(STEPS, QUICK))
def test_a_step_with_broken_streams_and_tasks_is_the_step_without_them(x64, name, monkeypatch):
    """One stream of every batch and the last task; two steps, for critics and old batches. What is broken is
    counted, also in the task that is left out."""
    collect, no_score = rollouts.collect, lifelong.no_score
    library = [x for name, x in sys.modules.items() if name.startswith("jaxmeta.")]
    users = [x for x in library if getattr(x, "collect", None) is collect]

    def run(num_tasks, num_streams, change, broken_tasks=()):
        def changed(*args, **settings):
            streams, data = collect(*args, **settings)
            return streams, change(data)

        for user in users:
            monkeypatch.setattr(user, "collect", changed)
        monkeypatch.setattr(lifelong, "no_score", lambda _: no_score(num_streams))
        algorithm = STEPS[name](num_tasks)
        drawn = sample_tasks(jax.random.key(1), FAMILY, num_tasks, split="train")
        spoil = lambda x: x.at[jnp.array(broken_tasks, int)].set(jnp.nan)  # noqa: E731
        drawn = drawn.replace(reward=spoil(drawn.reward))
        state = first = algorithm.init(jax.random.key(0))
        if hasattr(state, "lives"):
            state = state._replace(lives=state.lives._replace(task=drawn))
        if hasattr(state, "members"):
            life = state.members.life
            # Ages are spread over as many agents as there are.
            age, task = jnp.zeros_like(life.age), life.task.replace(reward=spoil(life.task.reward))
            life = life._replace(task=task, age=age)
            state = state._replace(members=state.members._replace(life=life))
        step, counts = jax.jit(algorithm.step), []
        for key in (2, 3):
            state, metrics = step(jax.random.key(key), state, drawn)
            counts.append({x: int(metrics[x]) for x in ("skipped_tasks", "skipped_streams")})
        moved = jax.tree.map(jnp.subtract, state.meta, first.meta)
        means = {x: y for x, y in metrics.items() if jnp.issubdtype(y.dtype, jnp.floating)}
        return flat(moved), means, counts, metrics

    fewer, expected, none, _ = run(2, NUM_STREAMS - 1, lambda data: without(data, 1))
    found, means, counts, metrics = run(
        3, NUM_STREAMS, lambda data: broken(data, 1, "reward", jnp.nan), (2,)
    )
    size = jnp.max(jnp.abs(fewer))
    assert size > 1e-10
    np.testing.assert_allclose(found, fewer, rtol=1e-10, atol=1e-10 * size)
    for x in expected:
        np.testing.assert_allclose(means[x], expected[x], rtol=1e-9, atol=1e-12, err_msg=x)
    assert none == [dict(skipped_tasks=0, skipped_streams=0)] * 2
    # A batch of each task has one, and those of the broken task have all.
    batches = counts[0]["skipped_streams"] // (2 + NUM_STREAMS)
    assert batches >= 1
    assert counts == [dict(skipped_tasks=1, skipped_streams=batches * (2 + NUM_STREAMS))] * 2
    assert metrics["skipped_updates"] == 0


def test_where_all_others_are_broken_there_are_no_others(x64):
    """The mean of none is 0."""
    good = jnp.array([False, True, False, False])
    x = jnp.array([jnp.nan, 2.0, jnp.inf, 3.0])
    np.testing.assert_array_equal(surrogates.leave_one_out_mean(x, good), [2.0, 0.0, 2.0, 2.0])
    np.testing.assert_array_equal(surrogates.leave_one_out_mean(x, good & False), jnp.zeros(4))
