import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import learners, networks, tasks
from jaxmeta.algorithms import ALGORITHMS, promp
from jaxmeta.algorithms import maml as maml_module
from jaxmeta.algorithms.maml import Config, Hyper, maml
from jaxmeta.estimators import baselines, episodes
from jaxmeta.estimators.surrogates import SURROGATES
from jaxmeta.learners.gradient import Meta, combine, partition
from jaxmeta.networks.distributions import Categorical, DiagGaussian
from tests.probes import Paid, made_up_streams, thorough

META = Meta({"body": jnp.ones(2), "context": jnp.zeros(3)}, Hyper(step_size=0.5))


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=4)


def test_a_stream_must_hold_an_episode(family):
    for name in ("maml", "reptile", "meta_actor_critic"):
        module = ALGORITHMS[name]
        with pytest.raises(
            ValueError, match="num_steps=3 must be at least 4, the horizon of family"
        ):
            getattr(module, name)(family, module.Config(num_steps=3))
        getattr(module, name)(family, module.Config(num_steps=5))
    # Values bootstrap where a stream is cut.
    ALGORITHMS["meta_value"].meta_value(family, ALGORITHMS["meta_value"].Config(num_steps=3))


def test_the_loss_is_per_step_of_t_however_soon_episodes_end(x64):
    """Against the sum over first episodes written out; a division by their lengths would weight short ones more."""
    tabular = tasks.make("tabular", num_states=3, num_actions=2, horizon=6)
    data, hyper = made_up_streams(), Hyper(discount=0.9, gae_lambda=0.8)
    config = Config(policy="softmax_linear")
    parts = learners.gradient_learner(tabular, config)
    theta = parts.init(jax.random.key(0), hyper).params

    @jax.jit
    def looked_at(theta):
        log_prob = parts.distribution(theta, data).log_prob(data.action)
        counted = jax.vmap(episodes.in_first_episode)(data.last)
        delta = baselines.baseline_td_errors(data, 0.9 * data.discount, 6, counted)
        loss = parts.loss(theta, data, hyper, SURROGATES["score"])
        return log_prob - data.log_prob, counted, delta, loss

    log_ratio, counted, delta, loss = jax.tree.map(np.asarray, looked_at(theta))
    lengths, total = counted.sum(1), 0.0
    assert lengths.min() < lengths.max()
    for n in range(4):
        weight, factor = 0.0, 1.0
        for k in range(lengths[n]):
            weight = 0.8 * weight + log_ratio[n, k]
            total += factor * weight * delta[n, k]
            factor *= 0.9 * float(data.discount[n, k])
    np.testing.assert_allclose(loss, -total / (4 * 6), rtol=1e-9)


@pytest.mark.parametrize("step_sizes", ["fixed", "parameter"])
@pytest.mark.parametrize("name", ["maml", "imaml", "meta_q", "meta_actor_critic", "meta_value"])
def test_the_step_size_that_is_read_is_the_one_in_hyper(name, step_sizes):
    """Of a learner that was made with another: at zero nothing moves, at twice the size all moves twice as far."""
    if (name, step_sizes) == ("imaml", "parameter"):
        return
    module, tabular = (
        ALGORITHMS[name],
        tasks.make("tabular", num_states=3, num_actions=2, horizon=6),
    )
    config = module.Config(num_streams=4, hidden_sizes=(), step_sizes=step_sizes)
    if name == "imaml":
        config = dataclasses.replace(config, solver_steps=1)
    algorithm = getattr(module, name)(tabular, config)
    meta, data = algorithm.init(jax.random.key(0)).meta, made_up_streams()
    data = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, float) else x, data)
    sizes = {x: y for x, y in meta.hyper._asdict().items() if x.endswith("step_size")}

    @jax.jit
    def moved(factors):
        scaled = {x: jax.tree.map(lambda y, x=x: factors[x] * y, sizes[x]) for x in sizes}
        changed = meta._replace(hyper=meta.hyper._replace(**scaled))
        agent = algorithm.learner.init(jax.random.key(1), changed)
        after = algorithm.learner.update(jax.random.key(2), changed, agent, data)
        before, after = (getattr(x, "value", getattr(x, "params", x)) for x in (agent, after))
        return jax.tree.map(jnp.subtract, after, before)

    whole = moved({x: 1.0 for x in sizes})
    assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(whole))
    for x in jax.tree.leaves(moved({x: 0.0 for x in sizes})):
        assert not jnp.any(x)
    twice = moved({x: 2.0 for x in sizes})
    for x, y in zip(jax.tree.leaves(twice), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, 2.0 * y, rtol=1e-3, atol=1e-6)
    if name == "meta_actor_critic":
        one = moved({"step_size": 1.0, "value_step_size": 0.0})
        assert not any(bool(jnp.any(x)) for x in jax.tree.leaves(one["value"]))
        assert any(bool(jnp.any(x)) for x in jax.tree.leaves(one["policy"]))


def test_what_is_learned_and_put_back():
    everything = Config()
    assert partition(META, everything) == {"params": META.params}
    steps = dataclasses.replace(everything, step_sizes="scalar")
    assert set(partition(META, steps)) == {"params", "step_size"}
    changed = combine(META, {"params": META.params, "step_size": 2.0}, steps)
    assert changed.hyper == META.hyper._replace(step_size=2.0)


def test_a_context_is_adapted_but_not_learned():
    config = Config(adapts="context", context_size=3)
    assert set(partition(META, config)["params"]) == {"body"}
    moved = combine(META, {"params": {"body": jnp.zeros(2)}}, config)
    assert jnp.all(moved.params["body"] == 0)
    assert moved.params["context"] is META.params["context"]
    assert learners.gradient.adapted(META.params, config) is META.params["context"]
    part = learners.gradient.with_adapted(META.params, jnp.ones(3), config)
    assert part["body"] is META.params["body"]
    assert jnp.all(part["context"] == 1)


def test_the_first_standard_deviation_is_the_configured_one(family):
    state = maml(family, Config(initial_std=0.25)).init(jax.random.key(0))
    np.testing.assert_allclose(jnp.exp(state.meta.params["head"]["log_std"]), 0.25, rtol=1e-6)
    with pytest.raises(ValueError, match="initial_std=0"):
        Config(initial_std=0.0)


@pytest.mark.parametrize(
    "settings",
    [dict(hidden_sizes=(8,)), dict(context_size=2), dict(initial_std=0.5), dict(policy="gaussian")],
)
@pytest.mark.parametrize("name", ["maml", "promp", "maml_trpo", "imaml", "reptile", "es"])
def test_a_setting_of_the_policy_is_refused_beside_an_own_policy(family, name, settings):
    module, policy = ALGORITHMS[name], networks.gaussian_mlp((2,), family.action_space, (3,))
    construct = getattr(module, name)
    (setting,) = settings
    with pytest.raises(ValueError, match=rf"{setting}=.* has no effect beside a policy= of your"):
        construct(family, module.Config(**settings), policy=policy)
    construct(family, module.Config(), policy=policy)


def test_a_softmax_linear_policy_has_no_hidden_sizes():
    tabular = tasks.make("tabular", num_states=3, num_actions=2, horizon=6)
    with pytest.raises(ValueError, match=r"hidden_sizes=\(\) has no effect with policy='softmax_"):
        maml(tabular, Config(policy="softmax_linear", hidden_sizes=()))
    # Here a value has them.
    for name in ("meta_actor_critic", "meta_value"):
        module = ALGORITHMS[name]
        value = networks.value_mlp(tabular.observation_shape, (3,))
        config = module.Config(policy="softmax_linear", hidden_sizes=(2,))
        getattr(module, name)(tabular, config)
        with pytest.raises(ValueError, match=r"hidden_sizes=\(2,\) has no effect where no network"):
            getattr(module, name)(tabular, config, value=value)
        policy = networks.categorical_mlp(tabular.observation_shape, tabular.action_space)
        with pytest.raises(
            ValueError, match="policy='softmax_linear' has no effect beside a policy"
        ):
            getattr(module, name)(tabular, config, policy=policy)


def test_what_is_never_differentiated_has_nothing_to_rematerialize():
    for name in ("imaml", "reptile", "es"):
        with pytest.raises(ValueError, match="rematerialize=False has no effect in .*default True"):
            ALGORITHMS[name].Config(rematerialize=False)


def test_an_inner_update_is_given_the_loss_and_the_settings(family):
    """A step of twice the size by an update of one's own."""
    config = Config(num_streams=2, hidden_sizes=(3,), inner_surrogate="score")
    step = learners.gradient.gradient_step

    def twice(meta, agent, data, *, loss, config):
        hyper = meta.hyper._replace(step_size=2.0 * meta.hyper.step_size)
        return step(meta._replace(hyper=hyper), agent, data, loss=loss, config=config)

    usual, own = (
        learners.gradient_learner(family, config, inner_update=update) for update in (step, twice)
    )

    @jax.jit
    def moved():
        meta, task = usual.init(jax.random.key(0), Hyper()), family.train(jax.random.key(1))
        history = usual.live(jax.random.key(2), meta, task)
        agent, data = jax.tree.map(lambda x: x[0], (history.agent, history.trajectories))
        after = [x.learner.update(jax.random.key(3), meta, agent, data) for x in (usual, own)]
        return [jax.tree.map(jnp.subtract, x, agent) for x in after]

    once, more = moved()
    for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(more), strict=True):
        np.testing.assert_allclose(2.0 * np.asarray(x), y, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["Categorical", "DiagGaussian"])
def test_mean_kl_is_that_of_the_old_to_the_new(kind):
    rows = jnp.linspace(-1.0, 1.0, 12).reshape(2, 3, 2)
    if kind == "Categorical":
        old, new = Categorical(rows), Categorical(-2.0 * rows)
    else:
        old, new = DiagGaussian(rows, 0.1 * rows), DiagGaussian(-rows, 0.0 * rows)
    every, second = jnp.array([True, True]), jnp.array([False, True])
    mean_kl = learners.gradient.mean_kl
    np.testing.assert_allclose(mean_kl(old, new, every), old.kl(new).mean(), rtol=1e-6)
    np.testing.assert_allclose(mean_kl(old, new, second), old.kl(new)[1].mean(), rtol=1e-6)
    assert mean_kl(old, old, every) == 0
    assert mean_kl(old, new, every) != mean_kl(new, old, every)


def test_records_are_the_lifetimes_that_a_meta_gradient_would_live(family):
    config = Config(num_streams=2, hidden_sizes=(3,), num_updates=2)
    parts = learners.gradient_learner(family, config)

    @jax.jit
    def recorded():
        meta = parts.init(jax.random.key(0), Hyper())
        drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="train")
        keys, histories = learners.gradient.record(jax.random.key(2), meta, drawn, parts=parts)
        one = parts.live(keys[1], meta, jax.tree.map(lambda x: x[1], drawn))
        return meta, drawn, histories, one

    meta, drawn, histories, one = recorded()
    assert histories.trajectories.reward.shape == (3, 3, 2, 4)
    for x, y in zip(jax.tree.leaves(histories), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(x[1], y, rtol=2e-5, atol=1e-6)
    reported = learners.gradient.report(one)
    earned = np.asarray(one.trajectories.reward).sum(-1).mean(-1)  # a stream is one episode
    before_and_after = [reported["return/before"], reported["return/after"]]
    np.testing.assert_allclose(before_and_after, earned[[0, -1]], rtol=1e-5)
    assert abs(earned[0] - earned[-1]) > 1e-3

    def total(params):
        _, histories = learners.gradient.record(
            jax.random.key(2), meta._replace(params=params), drawn, parts=parts
        )
        return sum(jnp.sum(x) for x in jax.tree.leaves(histories.agent))

    gradient = jax.jit(jax.grad(total))(meta.params)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(gradient))  # they are data


@pytest.mark.parametrize("module", thorough([maml_module, promp], (maml_module,)))
def test_with_normalized_advantages_the_unit_of_rewards_changes_nothing(x64, family, module):
    """Not a number of two meta-updates, inner steps, clipping and all: to the bit where the unit is a power
    of two."""
    config = module.Config(num_streams=3, hidden_sizes=(3,), normalize=True)
    hyper = module.Hyper(max_grad_norm=0.1)

    @jax.jit
    def learned(unit):
        paid = dataclasses.replace(family, env=Paid(family.env, unit))
        algorithm = getattr(module, module.__name__.rsplit(".")[-1])(paid, config, hyper)

        def update(state, keys):
            drawn = tasks.sample_tasks(keys[0], paid, 2, split="train")
            return algorithm.step(keys[1], state, drawn)

        keys = jax.random.split(jax.random.key(1), (2, 2))
        state, metrics = jax.lax.scan(update, algorithm.init(jax.random.key(0)), keys)
        return state, metrics["meta_grad_norm"]

    usual = learned(1.0)
    assert jnp.all(usual[1] > 0.1)
    for unit, tolerance in ((1024.0, 0.0), (2.0**-30, 0.0), (1e3, 1e-7)):
        for x, y in zip(*map(jax.tree.leaves, (learned(unit), usual)), strict=True):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-3 * tolerance)


@pytest.mark.slow
def test_rematerializing_changes_nothing_but_memory(x64, family):
    """The same meta-gradient, whether an inner step's intermediate values are kept or computed again."""
    found = []
    for rematerialize in (True, False):
        config = Config(
            num_streams=2, hidden_sizes=(3,), num_updates=3, rematerialize=rematerialize
        )
        algorithm = maml(family, config, optimizer=optax.sgd)

        @jax.jit
        def stepped(algorithm=algorithm):
            drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
            state = algorithm.init(jax.random.key(0))
            return algorithm.step(jax.random.key(2), state, drawn)[0].meta.params

        found.append(stepped())
    for x, y in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)
