"""OPEN against a version by hand in NumPy, and what a learned optimiser is told of its agent."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import networks, rollouts, tasks
from jaxmeta.learners import disco, update_rules
from jaxmeta.learners.learned_optimizers import (
    MOMENTUM_DECAYS,
    LearnedOptimizer,
    Progress,
    dormancies,
    features,
    layer_places,
    of_policy,
    open_optimizer,
    updated_momenta,
)
from jaxmeta.learners.update_rules import Meta, a2c, dpo, rule_learner
from jaxmeta.meta_updates.windows import (
    Objective,
    Window,
    evolution_strategy,
    persistent_evolution_strategy,
)
from jaxmeta.networks.values import value_mlp
from jaxmeta.rollouts import Setup
from jaxmeta.types import Learner
from tests.learners.test_update_rules import FAMILY, Values
from tests.meta_updates.test_windows import Line
from tests.networks.test_learned_optimizer import by_hand, moved
from tests.probes import CounterParams

OPEN = open_optimizer()


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tree)


@functools.lru_cache
def networks_of_agent():
    """A policy of two hidden layers and a linear prediction."""
    key = jax.random.key(0)
    return {
        "policy": networks.mlp.mlp(3, (4, 2), 2, 1.0).init(key),
        "prediction": networks.mlp.mlp(3, (), 1, 1.0).init(key),
    }


PLACES = {
    "policy": {
        "body": {
            "params": {
                "Dense_0": {"bias": 0.0, "kernel": 0.0},
                "Dense_1": {"bias": 0.5, "kernel": 0.5},
            }
        },
        "head": {"params": {"bias": 1.0, "kernel": 1.0}},
    },
    "prediction": {"body": {}, "head": {"params": {"bias": 0.0, "kernel": 0.0}}},
}


def features_by_hand(progress, gradients, params):
    """Rows ``[P, 19]`` after the ``gradients``, each a tree like the parameters, one number at a time."""
    rows = []
    trees = (params, PLACES, progress.dormancy, *gradients)
    for p, place, dormancy, *g in zip(*map(jax.tree.leaves, trees), strict=True):
        p, dormancy, g = np.asarray(p), np.asarray(dormancy), [np.asarray(x) for x in g]
        of_array = []
        for at in np.ndindex(p.shape):
            row = [p[at]]
            for decay in (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999):
                m = 0.0
                for x in g:
                    m = decay * m + (1.0 - decay) * x[at]
                row += [np.sign(m), np.log(abs(m) + 1e-8)]
            of_array.append([*row, np.sign(g[-1][at]), np.log(abs(g[-1][at]) + 1e-8)])
        of_array = np.array(of_array)
        of_array /= np.sqrt((of_array**2).mean(axis=0) + 1e-8)
        for row, d in zip(of_array, dormancy.ravel(), strict=True):
            rows.append([*row, progress.life, place, progress.epoch, d])
    return np.array(rows)


def progress_of(params):
    return Progress(jnp.asarray(0.25), jnp.asarray(0.5), random_like(params, 9))


def test_features_by_hand(x64):
    params = random_like(networks_of_agent(), 1)
    gradients = [random_like(params, seed) for seed in (2, 3, 4)]
    momenta = OPEN.birth(params).momenta
    for gradient in gradients:
        momenta = jax.tree.map(updated_momenta, momenta, gradient)
    progress = progress_of(params)
    found = features(progress, gradients[-1], momenta, params)
    expected = features_by_hand(progress, gradients, params)
    assert expected.shape == (12 + 4 + 8 + 2 + 4 + 2 + 3 + 1, 19)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_steps_by_hand(x64):
    """Two steps: noise moves the policy alone, and what all parameters share moves none."""
    params, meta = random_like(networks_of_agent(), 1), moved(OPEN.init(jax.random.key(0)))
    gradients = [random_like(params, seed) for seed in (2, 3)]
    progress, state, agent = progress_of(params), OPEN.birth(params), params
    memory, weights = np.zeros((36, 8)), jax.tree.map(np.asarray, meta)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    step = jax.jit(OPEN.step)
    for i, gradient in enumerate(gradients):
        x = features_by_hand(progress, gradients[: i + 1], agent)
        o, memory = by_hand(weights, memory, x)
        noise = np.array(jax.random.normal(jax.random.key(i), (36,)))
        noise[-4:] = 0.0
        u = 30.0 * (1e-3 * o[:, 0] * np.exp(1e-3 * o[:, 1]) + 1e-3 * o[:, 2] * noise)
        flat = flat - (u - u.mean())
        key = jax.random.key(i)
        agent, state = step(key, meta, jnp.asarray(30.0), progress, gradient, state, agent)
        found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(agent)])
        np.testing.assert_allclose(found, flat, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(state.memory, memory, rtol=1e-8, atol=1e-10)
    assert np.mean(np.abs(u)) > 1e-3
    assert of_policy(params).tolist() == [True] * 32 + [False] * 4


def stepped(meta, params, gradient, state, key=5):
    progress, step_size = progress_of(params), jnp.asarray(100.0)
    return jax.jit(OPEN.step)(
        jax.random.key(key), meta, step_size, progress, gradient, state, params
    )[0]


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_what_all_parameters_share_moves_none(x64):
    """The mean of an agent's parameters stays what it was, and an output that is alike for all does nothing."""
    params, meta = random_like(networks_of_agent(), 1), moved(OPEN.init(jax.random.key(0)))
    gradient, state = random_like(params, 2), OPEN.birth(params)
    after = stepped(meta, params, gradient, state)
    assert np.max(np.abs(flat(after) - flat(params))) > 1e-2
    np.testing.assert_allclose(flat(after).mean(), flat(params).mean(), rtol=1e-9)
    head = meta["head"]["head"]["params"]
    only_bias = {"kernel": 0.0 * head["kernel"], "bias": jnp.array([5.0, 2.0, 0.0])}
    shared = meta | {"head": meta["head"] | {"head": {"params": only_bias}}}
    after = stepped(shared, params, gradient, state)
    np.testing.assert_allclose(flat(after), flat(params), rtol=0, atol=1e-12)


def test_a_new_optimizer_and_one_of_zeros_leave_agents_as_they_are():
    params, new = random_like(networks_of_agent(), 1), OPEN.init(jax.random.key(0))
    gradient, state = random_like(params, 2), OPEN.birth(params)
    for meta in (new, jax.tree.map(jnp.zeros_like, new)):
        after = stepped(meta, params, gradient, state)
        for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True):
            assert np.array_equal(x, y)


def test_the_order_of_units_does_not_matter(x64):
    """With two units of a hidden layer in each other's place, their updates are, too. (Noise is drawn by place.)"""
    params, meta = random_like(networks_of_agent(), 1), moved(OPEN.init(jax.random.key(0)))
    head = meta["head"]["head"]["params"]
    quiet = {"kernel": head["kernel"].at[:, 2].set(0.0), "bias": head["bias"].at[2].set(0.0)}
    meta = meta | {"head": meta["head"] | {"head": {"params": quiet}}}

    def swapped(tree):
        policy = tree["policy"]["body"]["params"]
        first, second = policy["Dense_0"], policy["Dense_1"]
        order = jnp.array([2, 1, 0, 3])
        first = {"kernel": first["kernel"][:, order], "bias": first["bias"][order]}
        second = second | {"kernel": second["kernel"][order]}
        body = {"params": {"Dense_0": first, "Dense_1": second}}
        return tree | {"policy": tree["policy"] | {"body": body}}

    gradient, state = random_like(params, 2), OPEN.birth(params)
    progress = progress_of(params)

    def step(progress, gradient, params):
        return jax.jit(OPEN.step)(
            jax.random.key(0), meta, jnp.asarray(100.0), progress, gradient, state, params
        )[0]

    usual = swapped(step(progress, gradient, params))
    other = progress._replace(dormancy=swapped(progress.dormancy))
    found = step(other, swapped(gradient), swapped(params))
    assert np.max(np.abs(flat(usual) - flat(swapped(params)))) > 1e-2
    np.testing.assert_allclose(flat(found), flat(usual), rtol=1e-9, atol=1e-12)


def test_layers_are_in_order():
    layer = {"kernel": 0, "bias": 0}
    body = {"params": {f"Dense_{i}": layer for i in range(11)}}
    places = layer_places({"encoder": layer, "body": body, "head": {"params": layer}})
    assert places["encoder"]["kernel"] == 0.0
    found = [places["body"]["params"][f"Dense_{i}"]["bias"] for i in range(11)]
    np.testing.assert_allclose(found, np.arange(1, 12) / 12)
    assert places["head"]["params"]["kernel"] == 1.0
    assert jax.tree.leaves(layer_places({"theta": 0})) == [0.0]


def test_momenta_are_moving_averages(x64):
    g = jnp.array([1.0, -2.0])
    momenta = updated_momenta(jnp.ones((6, 2)), g)
    expected = [[d + (1 - d) * 1.0, d + (1 - d) * -2.0] for d in MOMENTUM_DECAYS]
    np.testing.assert_allclose(momenta, expected, rtol=1e-12)


@functools.lru_cache
def living(optimizer, family=FAMILY, rule=None, **settings):
    """``(parts, meta, agent, data, compiled update)``."""
    parts = rule_learner(rule or a2c(), family, optimizer=optimizer, lifespan=10, **settings)
    setup = rollouts.Setup(parts.learner, family.env, num_streams=2, num_steps=10)
    meta = Meta(jax.jit(parts.first_params)(jax.random.key(0)), Values(step_size=1.0))

    @jax.jit
    def born(meta):
        task = family.train(jax.random.key(1))
        agent, streams = rollouts.begin(jax.random.key(2), meta, task, setup=setup)
        return agent, rollouts.collect(jax.random.key(3), meta, task, agent, streams, setup=setup)

    agent, (_, data) = born(meta)
    return parts, meta, agent, data, jax.jit(parts.learner.update)


def telling(tell):
    """An optimiser that makes every parameter ``tell(progress)`` of it; it adds 100 to what its state was."""

    def step(key, params, step_size, progress, gradient, state, agent_params):
        return jax.tree.map(
            lambda x, d: jnp.zeros_like(x) + tell(progress, d), agent_params, progress.dormancy
        ), state + 100

    return LearnedOptimizer(lambda key: {"x": jnp.ones(())}, lambda params: jnp.zeros(()), step)


def test_an_optimizer_is_told_the_share_of_life_and_of_epochs(x64):
    """The second update of ten, the third of three epochs: 0.1 and 2/3."""
    optimizer = telling(lambda progress, _: progress.life + 10 * progress.epoch)
    _, meta, agent, data, update = living(optimizer, num_epochs=3)
    assert set(meta.params) == {"rule", "optimizer"}
    for age in (1, 2):
        agent = update(jax.random.key(4), meta, agent, data)
        assert agent.age == age
    assert agent.optimizer == 600
    np.testing.assert_allclose(flat(agent.params), 0.1 + 20 / 3, rtol=1e-6)


def test_dormancy_by_hand(x64):
    """Mean absolute activities of the units, in units of their layer's mean; a broken stream does not count."""
    optimizer = telling(lambda _, dormancy: dormancy)
    _, meta, agent, data, update = living(optimizer, hidden_sizes=(4, 3))
    reward = np.array(data.reward)
    reward[1, 3] = np.nan
    told = update(jax.random.key(4), meta, agent, data._replace(reward=reward)).params
    for part in ("policy", "prediction"):
        x = np.asarray(data.timestep.obs)[0]
        for name, after in told[part]["body"]["params"].items():
            layer = agent.params[part]["body"]["params"][name]
            x = np.tanh(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
            active = np.abs(x).mean(axis=0)
            np.testing.assert_allclose(after["bias"], active / active.mean(), rtol=1e-6)
            np.testing.assert_allclose(
                after["kernel"], np.tile(after["bias"], (len(layer["kernel"]), 1)), rtol=1e-12
            )
        np.testing.assert_allclose(flat(told[part]["head"]), 1.0)


def test_a_layer_that_sleeps_has_no_dormancy_to_share():
    params = networks_of_agent()["policy"]
    found = dormancies(params, {"Dense_0": jnp.zeros(4), "Dense_1": jnp.array([0.0, 2.0])})
    layers = found["body"]["params"]
    assert not np.any(layers["Dense_0"]["kernel"])
    np.testing.assert_allclose(layers["Dense_1"]["bias"], [0.0, 2.0], rtol=1e-6)


def test_of_a_policy_of_one_s_own_nothing_is_known():
    policy = networks.categorical_mlp(FAMILY.observation_shape, FAMILY.action_space, (4,))
    parts, _, agent, data, _ = living(OPEN, policy=policy)
    dormancy = parts.dormancy(agent.params, data, jnp.ones(2, bool))
    np.testing.assert_allclose(flat(dormancy["policy"]), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), [("catch", a2c()), ("pendulum", dpo())])
def test_agents_of_any_family_learn_by_it(name, rule):
    _, meta, agent, data, update = living(
        OPEN, tasks.make(name), rule, hidden_sizes=(8,), num_epochs=2
    )
    meta = meta._replace(params=moved(meta.params))
    after = update(jax.random.key(4), meta, agent, data)
    assert jax.tree.structure(after) == jax.tree.structure(agent)
    assert np.all(np.isfinite(flat(after.params)))
    assert np.any(flat(after.params) != flat(agent.params))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="lifespan=None must be the updates of a life: the learn"):
        rule_learner(a2c(), FAMILY, optimizer=OPEN)
    with pytest.raises(ValueError, match="lifespan=0 must be at least 1"):
        rule_learner(a2c(), FAMILY, optimizer=OPEN, lifespan=0)
    with pytest.raises(ValueError, match="memory_size=0 must be at least 1"):
        open_optimizer(memory_size=0)
    with pytest.raises(ValueError, match="hidden_sizes=0 must be at least 1"):
        open_optimizer(hidden_sizes=(16, 0))
    with pytest.raises(TypeError, match=r"optimizer is .*GradientTransformation.*optax.adam, say"):
        rule_learner(a2c(), FAMILY, optimizer=optax.adam(1e-3))
    with pytest.raises(TypeError, match="optimizer"):
        disco.disco_learner(disco.disco(), FAMILY, optimizer=OPEN)
    assert update_rules.reads_time(a2c(), OPEN)
    assert not update_rules.reads_time(a2c(), optax.sgd)


SMALL = open_optimizer(memory_size=2, hidden_sizes=(3,))
UNCHARGED = Objective(
    log_prob=lambda agent, data: 0.0 * data.reward,
    charge=lambda meta, agent, data, good: jnp.zeros(()),
    critic=value_mlp((2,), ()),
)


class Noise(NamedTuple):
    noise_std: float = 0.05


class Learned(NamedTuple):
    params: Any
    hyper: Any


def small_params():
    return moved(SMALL.init(jax.random.key(0)))


def toy(params):
    """Agents of three numbers whose gradient is always the same; a step earns 1 - (x - 1)² by the first of them.
    The optimiser's last layer alone is learned."""
    first = {"policy": jnp.array([0.0, 0.5]), "prediction": jnp.array([-0.3])}
    gradient = {"policy": jnp.array([1.0, -0.5]), "prediction": jnp.array([0.25])}
    told = Progress(jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.ones_like, first))

    def step(meta, agent):
        whole = params | {"head": params["head"] | {"head": {"params": meta.params}}}
        x, state = agent
        return SMALL.step(jax.random.key(0), whole, jnp.asarray(300.0), told, gradient, state, x)

    def earned(agent):
        return 1.0 - (agent[0]["policy"][0] - 1.0) ** 2

    learner = Learner(
        init=lambda key, meta: (first, SMALL.birth(first)),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, timestep: (earned(agent), jnp.zeros(()), memory),
        update=lambda key, meta, agent, data: step(meta, agent),
    )
    return learner, step, earned


def estimates(strategy, num_updates, lifespan=4, num=4000):
    """Estimates of the gradient of a life's earnings, ``[num, 12]``."""
    learner, _, _ = toy(small_params())
    window = Window(Setup(learner, Line(), 1, 1), lifespan, num_updates)
    estimator = strategy(window, UNCHARGED)
    meta = Learned(small_params()["head"]["head"]["params"], Noise())
    task = CounterParams(number=0.0, terminate_at=1000)

    def estimate(key):
        birth_key, *keys = jax.random.split(key, 1 + lifespan // num_updates)
        member, total = estimator.birth(birth_key, meta, task), 0.0
        for key in keys:
            gradient, _, member = estimator.estimate(key, meta, member, task)
            total = total - jax.flatten_util.ravel_pytree(gradient)[0] * num_updates
        return total

    return np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), num)))


@pytest.mark.usefixtures("in_earnest")
def test_evolution_through_it_is_unbiased(x64):
    """One update: what is earned is a quadratic function of the last layer, whose gradient is known."""
    found = estimates(evolution_strategy, 2, lifespan=2)
    _, step, earned = toy(small_params())
    first = toy(small_params())[0].init(None, None)
    head = small_params()["head"]["head"]["params"]
    exact = jax.grad(lambda head: earned(step(Learned(head, None), first)))(head)
    exact = jax.flatten_util.ravel_pytree(exact)[0]
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.max(np.abs(exact)) > 10 * np.max(error)
    assert np.all(np.abs(found.mean(axis=0) - exact) < 4.5 * error + 1e-3 * np.max(np.abs(exact)))


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_persistent_evolution_through_it_owes_nothing_to_windows(x64):
    """Two windows of two updates agree with one of four; evolution that forgets does not."""
    whole, persistent, truncated = (
        estimates(strategy, num_updates)
        for strategy, num_updates in (
            (evolution_strategy, 4),
            (persistent_evolution_strategy, 2),
            (evolution_strategy, 2),
        )
    )

    def apart(x, y):
        error = np.sqrt((x.var(axis=0) + y.var(axis=0)) / len(x))
        return np.max(np.abs(x.mean(axis=0) - y.mean(axis=0)) / error)

    assert apart(persistent, whole) < 4.5
    assert apart(truncated, whole) > 8
