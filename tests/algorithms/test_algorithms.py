"""The protocol that every algorithm passes through."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.tasks import transform
from jaxmeta.tasks.navigation import NavigationParams
from tests.probes import thorough

# Settings that do not meet stand in one variant: each has its own test of what it computes.
VARIANTS = {
    "MAML": ("maml", {}),
    "first order, two updates, all scored": (
        "maml",
        dict(first_order=True, num_updates=2, outer_updates="all"),
    ),
    "no adaptation": ("maml", dict(num_updates=0)),
    "Meta-SGD, normalised": ("maml", dict(step_sizes="parameter", normalize=True)),
    "leave-one-out ANIL": (
        "maml",
        dict(sampling_correction="leave_one_out", inner_surrogate="score", adapts="head"),
    ),
    "E-CAVIA": (
        "maml",
        dict(
            sampling_correction="score",
            inner_surrogate="score",
            num_updates=2,
            adapts="context",
            context_size=3,
        ),
    ),
    "ProMP, two updates": ("promp", dict(num_epochs=2, num_updates=2)),
    "MAML-TRPO": ("maml_trpo", {}),
    "Reptile": ("reptile", dict(num_updates=1)),
    "iMAML of the head": ("imaml", dict(adapts="head")),
    "ES": ("es", dict(population_size=4)),
    "ES with CAVIA's context": ("es", dict(population_size=4, adapts="context", context_size=3)),
}
OFF_POLICY = {
    "actor-critic": ("meta_actor_critic", dict(num_updates=2, step_sizes="parameter")),
    "adapted critic": ("meta_actor_critic", dict(adapts="value", num_batches=1)),
    "Retrace": ("meta_q", dict(num_updates=2)),
    "tree-backup of the head": ("meta_q", dict(trace="tree_backup", adapts="head")),
    "values": ("meta_value", {}),
    "values by importance sampling": (
        "meta_value",
        dict(target="importance_sampling", outer_target="vtrace", step_sizes="fixed"),
    ),
    "values by residual gradients": (
        "meta_value",
        dict(target="weighted_importance_sampling", gradient="residual", scored="last"),
    ),
    "values without adaptation": ("meta_value", dict(num_updates=0, outer_policy="target")),
}
QUICK = ("MAML", "ES", "actor-critic", "values")
"""One for each kind of learner and of meta-update."""
NUM_TASKS = 3
METRICS = {"return/before", "return/after", "skipped_tasks", "skipped_updates", "env_steps"}


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=6)


def make(family, variant):
    name, settings = (VARIANTS | OFF_POLICY)[variant]
    module = ALGORITHMS[name]
    config = module.Config(num_streams=4, hidden_sizes=(8,), **settings)
    return getattr(module, name)(family, config), config


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def assert_equal_avals(after, before):
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)


def test_modules_offer_what_the_script_reads():
    for name, module in ALGORITHMS.items():
        assert dataclasses.is_dataclass(module.Config)
        assert hasattr(module.Hyper, "_fields")
        assert callable(getattr(module, name))


@pytest.mark.parametrize("variant", thorough(VARIANTS | OFF_POLICY, ("MAML", "ES", "values")))
def test_protocol(family, variant):
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; a
    broken task is left out and counted; with every task broken nothing changes; the learner adapts."""
    if variant in OFF_POLICY:
        family = tasks.make("tabular", num_states=3, num_actions=2, horizon=6)
    algorithm, config = make(family, variant)
    drawn = tasks.sample_tasks(jax.random.key(1), family, NUM_TASKS, split="train")
    state = algorithm.init(jax.random.key(0))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    after, metrics = step(jax.random.key(2), state, drawn)
    assert_equal_avals(jax.eval_shape(lambda: after), jax.eval_shape(lambda: state))

    norm = "update_norm" if "ES" in variant else "meta_grad_norm"
    is_value = variant.startswith("values")
    reported = {"error/0", "skipped_tasks", "skipped_updates"} if is_value else METRICS
    assert set(metrics) >= reported | {norm}
    assert all(x.shape == () for x in metrics.values())
    members = 1 + getattr(config, "population_size", 0)
    rounds = 2 if is_value else config.num_updates + 1
    assert metrics["env_steps"] == members * NUM_TASKS * 4 * 6 * rounds
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert after.num_updates == 1
    theta, moved = flat(state.meta.params), flat(after.meta.params)
    assert np.all(np.isfinite(moved))
    assert not np.allclose(theta, moved, atol=1e-7)
    if config.adapts == "context":
        assert jnp.all(after.meta.params["context"] == 0)

    broken = jax.tree.map(np.array, drawn)
    for x in jax.tree.leaves(broken):
        x[1] = np.nan
    partly, metrics = step(jax.random.key(2), after, broken)
    assert metrics["skipped_tasks"] == 1
    assert metrics["skipped_updates"] == 0
    assert jnp.isfinite(metrics["error/0" if is_value else "return/after"])
    assert jnp.all(jnp.isfinite(flat(partly.meta.params)))
    assert not np.allclose(moved, flat(partly.meta.params), atol=1e-7)
    hopeless = jax.tree.map(lambda x: np.full_like(x, np.nan), drawn)
    same, metrics = step(jax.random.key(2), partly, hopeless)
    assert metrics["skipped_updates"] == 1
    assert metrics["skipped_tasks"] == NUM_TASKS
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(partly), strict=True):
        np.testing.assert_array_equal(x, y)


SEPARABLE = {
    "MAML": ("maml", {}),
    "leave-one-out": ("maml", dict(sampling_correction="leave_one_out", inner_surrogate="score")),
    "Reptile": ("reptile", dict(num_updates=1)),
}


@pytest.mark.parametrize(
    "variant",
    thorough(SEPARABLE, QUICK),
)
def test_every_task_counts_alike_and_none_leaks_into_another(x64, variant):
    """The meta-gradient is a sum of one term a task: what changing one adds does not depend on the
    others, although they are worked on in chunks and differ in everything. Were adapted parameters
    handed on, were one task's gradient counted for all or a task left out, it would."""
    name, settings = SEPARABLE[variant]
    module = ALGORITHMS[name]
    family = tasks.make("navigation", horizon=4)
    config = module.Config(num_streams=3, hidden_sizes=(3,), tasks_per_chunk=2, **settings)
    hyper = module.Hyper(max_grad_norm=1e9)
    algorithm = getattr(module, name)(family, config, hyper, optimizer=optax.sgd)
    state = algorithm.init(jax.random.key(0))

    @jax.jit
    def step(goal):
        after, metrics = algorithm.step(jax.random.key(2), state, NavigationParams(goal))
        return flat(after.meta.params), metrics["skipped_tasks"]

    goals = jax.random.uniform(jax.random.key(1), (3, 2), minval=-0.5, maxval=0.5)
    reference, skipped = step(goals)
    assert skipped == 0
    for m in range(3):
        changed = goals.at[m].multiply(-1.0)
        others = jnp.roll(goals, 1, axis=0).at[m].set(goals[m])
        difference = step(changed)[0] - reference
        elsewhere = step(others.at[m].set(changed[m]))[0] - step(others)[0]
        assert jnp.max(jnp.abs(difference)) > 1e-7
        scale = jnp.max(jnp.abs(difference))
        np.testing.assert_allclose(difference, elsewhere, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("variant", thorough(VARIANTS, ("MAML", "E-CAVIA", "iMAML of the head")))
def test_agents_are_born_with_theta_and_change_what_they_may(family, variant):
    algorithm, config = make(family, variant)
    meta = algorithm.init(jax.random.key(0)).meta
    task = jax.tree.map(
        lambda x: x[0], tasks.sample_tasks(jax.random.key(1), family, 1, split="train")
    )
    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=4, num_steps=6)
    live = functools.partial(rollouts.lifetime, setup=setup, num_updates=1, restart=True)
    agents = jax.jit(live)(jax.random.key(2), meta, task).agent
    for x, theta in zip(jax.tree.leaves(agents), jax.tree.leaves(meta.params), strict=True):
        np.testing.assert_array_equal(x[0], theta)
    body, head = (
        [bool(jnp.any(x[1] != x[0])) for x in jax.tree.leaves(agents[part])]
        for part in ("body", "head")
    )
    assert any(body) == (config.adapts == "all")
    assert all(head) == (config.adapts in ("all", "head"))
    if config.adapts == "context":
        assert jnp.all(agents["context"][1] != 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml", "es", "meta_actor_critic", "learned_objective", "rl2"])
def test_hyper_parameters_can_be_mapped_over(x64, name):
    """Two values in one vmap are two runs: an algorithm for each kind of learner and of meta-update.

    `test_meta_gradient` maps over those of meta-gradients.
    """
    module = ALGORITHMS[name]
    # What Adam does not scale away, and the solver of an inner problem does not either.
    swept = "step_size" if "step_size" in module.Hyper._fields else "learning_rate"
    swept = "learning_rate" if name == "es" else swept
    own = {
        "es": dict(population_size=4),
        "learned_objective": dict(num_agents=2, num_steps=4, num_predictions=3, memory_size=4),
        "rl2": dict(memory_size=4, num_minibatches=2),
    }
    small = dict(num_streams=3, hidden_sizes=(4,)) | own.get(name, {})
    family = tasks.make("navigation", horizon=4)
    algorithm = getattr(module, name)(family, module.Config(**small))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    hypers = [module.Hyper(**{swept: x}) for x in (0.1, 0.4)]
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, float), *hypers)

    def run(hyper):
        state = algorithm.init(jax.random.key(0), hyper)
        return algorithm.step(jax.random.key(2), state, drawn)[0].meta.params

    together = jax.jit(jax.vmap(run))(stacked)
    for x, y in zip(
        jax.tree.leaves(together), jax.tree.leaves(jax.jit(run)(hypers[1])), strict=True
    ):
        np.testing.assert_allclose(x[1], y, rtol=1e-4, atol=1e-6)
    assert jnp.any(jnp.abs(flat(jax.tree.map(lambda x: x[0] - x[1], together))) > 1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("promp", dict(num_epochs=0), "num_epochs=0 must be at least 1"),
        ("maml_trpo", dict(cg_steps=0), "cg_steps=0 must be at least 1"),
        ("maml_trpo", dict(max_backtracks=-1), "max_backtracks=-1 must be at least 0"),
        ("imaml", dict(solver_steps=0), "solver_steps=0 must be at least 1"),
        ("imaml", dict(step_sizes="scalar"), "step_sizes='scalar' must be 'fixed'"),
        ("reptile", dict(step_sizes="parameter"), "step_sizes='parameter' must be 'fixed'"),
        ("reptile", dict(adapts="context", context_size=2), "adapts='context' must be 'all'"),
        ("es", dict(step_sizes="scalar"), "step_sizes='scalar' must be 'fixed'"),
        ("es", dict(population_size=5), "population_size=5 must be even"),
        ("es", dict(context_size=-1), "context_size=-1 must be at least 0"),
        ("promp", dict(num_streams=0), "num_streams=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        ALGORITHMS[name].Config(**settings)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("promp", dict(clip=0.0), "clip=0.0 must lie between"),
        ("promp", dict(kl_cost=-1.0), "kl_cost=-1.0 must lie between 0"),
        ("maml_trpo", dict(max_kl=0.0), "max_kl=0.0 must lie between"),
        ("maml_trpo", dict(damping=-1.0), "damping=-1.0 must lie between 0"),
        ("imaml", dict(proximal=0.0), "proximal=0.0 must lie between"),
        ("es", dict(noise_std=0.0), "noise_std=0.0 must lie between"),
        ("reptile", dict(discount=2.0), "discount=2.0 must lie between 0 and 1"),
    ],
)
def test_bad_hyper_parameters_are_named(family, name, values, message):
    module = ALGORITHMS[name]
    with pytest.raises(ValueError, match=message):
        getattr(module, name)(family, hyper=module.Hyper(**values))


def test_what_cannot_be_adapted_is_named(family):
    module = ALGORITHMS["maml"]
    with pytest.raises(ValueError, match="adapts='haed' is unknown: did you mean 'head'"):
        module.maml(family, module.Config(adapts="haed"))
    with pytest.raises(ValueError, match="adapts='context' is unknown"):
        module.maml(family, module.Config(adapts="context"))
    cartpole = tasks.make("cartpole")
    with pytest.raises(ValueError, match="context_size=3 must be 0"):
        module.maml(cartpole, module.Config(policy="softmax_linear", context_size=3))


@pytest.mark.parametrize(
    "name", ["maml", "promp", "meta_gradient", "meta_actor_critic", "meta_value"]
)
def test_softmax_linear_policies_are_of_the_family_s_action_features(name):
    """Somewhere in the state there is a θ with an entry for each of summarisation's six topics."""
    module, family = ALGORITHMS[name], tasks.make("summarisation")
    algorithm = getattr(module, name)(family, module.Config(policy="softmax_linear"))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    sizes = {
        leaf.shape[-1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "theta" in jax.tree_util.keystr(path)
    }
    if name == "meta_value":  # its policies are born with the agent
        agent = jax.eval_shape(algorithm.learner.init, jax.random.key(0), state.meta)
        sizes = {agent.target["theta"].shape[-1]}
    assert sizes == {6}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["MAML", "values"])
def test_steps_with_broken_numbers_are_left_out_and_counted(variant):
    """An environment that reports what is not finite now and then: training goes on with the streams that
    it spared, and says how many it did not. An algorithm for each kind of learner: what a broken stream
    costs, `test_absence` holds to its numbers for every one."""
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=6)
    faulty = transform.faulty(family, rate=0.02)
    algorithm, _ = make(faulty, variant)
    step = jax.jit(algorithm.step)
    state, counts = algorithm.init(jax.random.key(0)), []
    for i in range(3):
        drawn = tasks.sample_tasks(jax.random.key(i), faulty, 8, split="train")
        theta = flat(state.meta.params)
        state, metrics = step(jax.random.key(10 + i), state, drawn)
        counts.append([int(metrics[f"skipped_{name}"]) for name in ("streams", "tasks", "updates")])
        assert jnp.all(jnp.isfinite(flat(state.meta.params)))
        assert not jnp.allclose(theta, flat(state.meta.params), atol=1e-7)
    streams, lost, updates = np.sum(counts, axis=0)
    # Some 12 % of 3 · 8 · 4 · 2 streams of six steps.
    assert 2 <= streams <= 60
    assert lost <= 2
    assert updates == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        *("Meta-SGD, normalised", "MAML-TRPO", "ES", "actor-critic"),
        *("values by residual gradients", "rl2", "meta_gradient", "lpg"),
    ],
)
def test_where_there_is_nothing_to_learn_nothing_breaks(variant):
    """Rewards that are all zero, and then all the same: advantages without a spread, values that are exact, no
    direction to move in. Nothing is left out as broken, and what is learned stays finite.

    An algorithm for each kind of learner, and MAML-TRPO, which divides by the curvature along its step.
    """
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=6)
    if variant in VARIANTS | OFF_POLICY:
        algorithm, _ = make(family, variant)
    else:
        name, settings = {
            "lpg": ("learned_objective", dict(num_agents=4, lifespan=2, num_updates=2)),
            "meta_gradient": ("meta_gradient", dict(num_agents=4, num_streams=2)),
        }.get(variant, (variant, dict(num_episodes=2, memory_size=4)))
        module = ALGORITHMS[name]
        algorithm = getattr(module, name)(family, module.Config(**settings))
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    for reward in (0.0, 0.0, 1.0):
        drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
        drawn = drawn.replace(reward=jnp.full_like(drawn.reward, reward))
        state, metrics = step(jax.random.key(2), state, drawn)
        assert metrics["skipped_tasks"] == 0
        assert jnp.all(jnp.isfinite(flat(state.meta.params)))
