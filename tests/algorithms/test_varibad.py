import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnax.environments import spaces
from rich.console import Console

from jaxmeta import learners, tasks
from jaxmeta.algorithms.varibad import Config, Hyper, belief_actor_critic, replay_bytes, varibad
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import zero_inputs
from jaxmeta.networks.heads import action_head
from jaxmeta.networks.hypernetworks import hyper_head
from jaxmeta.runs import training

SMALL = dict(
    num_episodes=2, memory_size=6, hidden_sizes=(8,), decoder_sizes=(8,), latent_size=3,
    num_epochs=1, num_minibatches=1, decodes=("rewards", "states"),
)  # fmt: skip
NOTHING = dict(reward_cost=0.0, state_cost=0.0, kl_cost=0.0)


FAMILY = tasks.make("gridnavi", size=3, horizon=4)


@pytest.fixture(scope="module")
def family():
    return FAMILY


@functools.lru_cache
def stepping():
    """``init(key, hyper)`` and ``step``, compiled once: values of ``hyper`` are data.

    Not as one program, in which a parameter may be rounded one way for the step and another to be returned.
    """
    algorithm = varibad(FAMILY, Config(**SMALL), optimizer=optax.sgd)
    return jax.jit(algorithm.init), jax.jit(algorithm.step)


def moved(hyper, compiled=stepping):
    """Which parts of the parameters a step changes."""
    init, step = compiled()
    state = init(jax.random.key(0), hyper)
    drawn = tasks.sample_tasks(jax.random.key(1), FAMILY, 6, split="train")
    after, metrics = step(jax.random.key(2), state, drawn)
    state, after, metrics = jax.tree.map(np.asarray, (state, after, metrics))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.meta.params))
    changed = {
        name: any(
            np.any(x != y)
            for x, y in zip(
                jax.tree.leaves(part), jax.tree.leaves(after.meta.params[name]), strict=True
            )
        )
        for name, part in state.meta.params.items()
    }
    return {name for name, has_moved in changed.items() if has_moved}, metrics


def test_who_learns_from_what():
    """The policy's objective reaches policy and value alone; each decoder is moved by its own error, and
    the encoder by whatever needs its belief."""
    belief = {"encoder", "posterior"}
    acting = {"policy", "value"}
    assert moved(Hyper(**NOTHING))[0] == acting
    assert moved(Hyper(**NOTHING | {"kl_cost": 1.0}))[0] == acting | belief
    rewards = Hyper(**NOTHING | {"reward_cost": 1.0})
    assert moved(rewards)[0] == acting | belief | {"rewards"}
    states = Hyper(**NOTHING | {"state_cost": 1.0})
    assert moved(states)[0] == acting | belief | {"states"}


def test_end_to_end_the_policy_teaches_the_encoder(family):
    """Through the belief alone: nothing else of the belief has a gradient of what the policy and the value say."""
    config = Config(**SMALL, end_to_end=True)
    network, _ = belief_actor_critic(family, config)
    params = network.init(jax.random.key(0))
    inputs = jax.tree.map(lambda x: x[None], zero_inputs(family))

    def said(params):
        distribution, v = network.unroll(params, network.initial(), inputs)
        return jnp.sum(v) + distribution.logits[0, 0]

    gradient = jax.grad(said)(params)
    reached = {name for name, x in gradient.items() if any(map(jnp.any, jax.tree.leaves(x)))}
    assert reached == {"encoder", "posterior", "policy", "value"}


def test_metrics():
    _, metrics = moved(Hyper())
    for name in ("error/rewards", "error/states", "belief_kl", "entropy", "return/trial"):
        assert np.isfinite(metrics[name]), name
    assert metrics["belief_kl"] > 0
    assert metrics["env_steps"] == 6 * 2 * 4


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_the_belief_finds_the_goal():
    """It finds the goal in the first episode and walks straight to it in the second, and the decoded rewards
    say where it is."""
    family = tasks.make("gridnavi", size=3, horizon=8)
    config = Config(num_episodes=2, num_epochs=2, num_minibatches=2)
    algorithm = varibad(family, config, Hyper(learning_rate=3e-3))
    state = algorithm.init(jax.random.key(0))

    def update(carry, key):
        task_key, step_key = jax.random.split(key)
        drawn = tasks.sample_tasks(task_key, family, 128, split="train")
        state, metrics = algorithm.step(step_key, carry, drawn)
        return state, metrics

    state, metrics = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys))(
        state, jax.random.split(jax.random.key(1), 150)
    )
    errors = np.asarray(metrics["error/rewards"])
    returns = np.asarray(metrics["return/after"])
    assert errors[-20:].mean() < 0.5 * errors[5:15].mean()
    assert returns[-20:].mean() > returns[:20].mean() + 1.0


KEPT = dict(replay_trials=8, replayed_trials=4, belief_steps=2)


@functools.lru_cache
def stepping_apart():
    """As `stepping`, with a belief that learns from kept trials."""
    pytest.importorskip("flashbax")
    algorithm = varibad(FAMILY, Config(**SMALL | KEPT), optimizer=optax.sgd)
    return jax.jit(algorithm.init), jax.jit(algorithm.step)


def test_apart_each_optimiser_moves_its_own_part():
    """Without the other's step size PPO leaves the belief as it is, and the ELBO the policy."""
    acting = {"policy", "value"}
    belief = {"encoder", "posterior", "rewards", "states"}
    assert moved(Hyper(belief_learning_rate=0.0), stepping_apart)[0] == acting
    assert moved(Hyper(learning_rate=0.0), stepping_apart)[0] == belief
    changed, metrics = moved(Hyper(), stepping_apart)
    assert changed == acting | belief
    assert metrics["replay_trials"] == 6
    assert metrics["belief_kl"] > 0


def test_apart_each_optimiser_holds_the_state_of_its_own_part():
    pytest.importorskip("flashbax")
    algorithm = varibad(FAMILY, Config(**SMALL | KEPT))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))

    def size(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    params = state.meta.params
    acting = size([params["policy"], params["value"]])
    assert size(state.optimizer) == 2 * acting + 1  # Adam's two moments and its count
    assert size(state.auxiliary_optimizer) == 2 * (size(params) - acting) + 1


@pytest.mark.slow
def test_a_run_with_a_belief_apart_resumes_bit_for_bit(tmp_path):
    """Three meta-updates are one, a checkpoint and two: parameters, both optimisers, buffer and metrics."""
    pytest.importorskip("flashbax")
    algorithm = varibad(FAMILY, Config(**SMALL | KEPT))
    quiet = dict(console=Console(quiet=True))

    def config(meta_updates):
        return training.Config(meta_updates=meta_updates, num_tasks=4, checkpoint_every=1)

    whole = training.train(algorithm, FAMILY, config(3), **quiet)
    training.train(algorithm, FAMILY, config(1), folder=tmp_path / "run", **quiet)
    how = dict(folder=tmp_path / "run", resume=True) | quiet
    resumed = training.train(algorithm, FAMILY, config(3), **how)
    assert resumed.state.replay.is_full
    chex.assert_trees_all_equal(resumed.state, whole.state)


def test_both_step_sizes_fall():
    hyper = Hyper(learning_rate=2.0, belief_learning_rate=4.0, anneal_updates=10.0)
    fallen = learners.recurrent.annealed(hyper, jnp.asarray(5))
    assert (fallen.learning_rate, fallen.belief_learning_rate) == (1.0, 2.0)
    assert fallen.entropy_cost == 0.5 * hyper.entropy_cost


def test_the_bytes_of_a_buffer_are_known_before_it_is_made():
    """GridNavi: 25 cells and as many of the successor, two actions, two rewards and two flags a step."""
    pytest.importorskip("flashbax")
    family = tasks.make("gridnavi", horizon=15)
    config = Config(num_episodes=4, replay_trials=100)
    predicted = replay_bytes(family, config)
    assert predicted == 100 * 60 * (2 * 25 * 4 + 2 * 4 + 2 * 4 + 2)
    taken = jax.eval_shape(varibad(family, config).init, jax.random.key(0)).replay.experience
    assert predicted == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(taken))
    assert replay_bytes(family, Config()) == 0


@pytest.mark.parametrize("given", [False, True])
def test_a_hyper_head_begins_with_the_policy_without_a_belief(family, given):
    """And it reads the belief once the belief makes weights: the last features are the belief."""
    latent, sizes = 3, (4,)
    config = Config(latent_size=latent, memory_size=4, hidden_sizes=sizes)
    head = None
    if given:
        head = functools.partial(
            hyper_head, action_space=family.action_space, memory_size=2 * latent, hidden_sizes=sizes
        )
    else:
        config = dataclasses.replace(config, head="hyper", policy_sizes=sizes, hidden_sizes=(5,))
    network, parts = belief_actor_critic(family, config, head=head)
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 9 + 2 + 2 * latent))
    base = action_head(9 + 2, family.action_space, sizes)
    expected = base.apply(params["policy"]["a"], x[:, :11]).logits
    np.testing.assert_allclose(
        parts.policy.apply(params["policy"], x).logits, expected, rtol=1e-5, atol=1e-7
    )
    made = params["policy"] | {"A": jax.tree.map(jnp.ones_like, params["policy"]["A"])}
    found = parts.policy.apply(made, x).logits
    weights = jax.tree.map(lambda a: a + jnp.sum(x[0, 11:]), made["a"])
    np.testing.assert_allclose(found[0], base.apply(weights, x[0, :11]).logits, rtol=1e-4)


def test_a_head_that_does_not_fit_is_refused(family):
    def three(num_features):
        return action_head(num_features, spaces.Discrete(3))

    with pytest.raises(ValueError, match="head does not fit family 'gridnavi'"):
        varibad(family, head=three)
    with pytest.raises(ValueError, match="head='hyper' has no effect with the argument head="):
        varibad(family, Config(head="hyper"), head=three)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="none"), "memory='none' is unknown"),
        (dict(latent_size=0), "latent_size=0 must be at least 1"),
        (dict(decoder_sizes=()), "decoder_sizes=.. must have at least one width"),
        (dict(decodes=("reward",)), "decodes='reward' is unknown: did you mean 'rewards'"),
        (dict(decodes=()), "decodes=.. must name 'rewards', 'states' or both"),
        (dict(head="mlp"), "head='mlp' is unknown"),
        (dict(policy_sizes=(0,)), "policy_sizes=0 must be at least 1"),
        (dict(reward_error="huber"), "reward_error='huber' is unknown"),
        (dict(reward_decoder="state"), "reward_decoder='state' is unknown"),
        (dict(spread="variance"), "spread='variance' is unknown"),
        (dict(replay_trials=-1), "replay_trials=-1 must be at least 0"),
        (dict(replay_trials=9), "replayed_trials=32 must be at most replay_trials=9"),
        (dict(replay_trials=64, belief_steps=0), "belief_steps=0 must be at least 1"),
        (
            dict(replay_trials=64, end_to_end=True),
            "end_to_end=True has no effect with replay_trials=64",
        ),
        (dict(belief_steps=3), "belief_steps=3 has no effect with replay_trials=0"),
        (dict(replayed_trials=3), "replayed_trials=3 has no effect with replay_trials=0"),
        (
            dict(decodes=("states",), reward_error="cross_entropy"),
            "reward_error='cross_entropy' has no effect with decodes=.'states',.",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_settings_without_an_effect_are_refused(family):
    memory = recurrent.gru(4)
    with pytest.raises(ValueError, match="memory_size=8 has no effect with the argument memory="):
        varibad(family, Config(memory_size=8), memory=memory)
    with pytest.raises(ValueError, match="state_cost=2.0 has no effect with decodes=.'rewards',."):
        varibad(family, hyper=Hyper(state_cost=2.0))
    with pytest.raises(ValueError, match="belief_learning_rate=0.1 has no effect with replay_tri"):
        varibad(family, hyper=Hyper(belief_learning_rate=0.1))
    with pytest.raises(ValueError, match="reward_cost=2.0 has no effect"):
        varibad(family, Config(decodes=("states",)), Hyper(reward_cost=2.0))


def test_an_object_is_what_its_name_stands_for(family):
    named, given = (
        jax.jit(x.init)(jax.random.key(0))
        for x in (
            varibad(family, Config(memory="linear", memory_size=4)),
            varibad(family, memory=recurrent.linear_recurrence(4)),
        )
    )
    chex.assert_trees_all_equal(named, given)


def test_its_numbers_are_those_of_learners_with_memory_and_more():
    shared = learners.trial_gradients.Hyper()._asdict()
    assert list(Hyper()._asdict().items())[: len(shared)] == list(shared.items())


def test_bad_hyper_parameters_are_named(family):
    with pytest.raises(ValueError, match="state_cost=-1.0 must lie between 0"):
        varibad(family, hyper=Hyper(state_cost=-1.0))


@pytest.mark.parametrize(
    ("config", "hyper", "message"),
    [
        (dict(bonuses=("curiosity",)), {}, "bonuses='curiosity'"),
        (dict(bonuses=("error", "error")), {}, "bonuses"),
        (dict(novelty_sizes=(4,)), {}, "novelty_sizes=.* has no effect with bonuses"),
        ({}, dict(novelty_bonus=2.0), "novelty_bonus=2.0 has no effect with bonuses"),
        ({}, dict(bonus_updates=10.0), "bonus_updates=10.0 has no effect with bonuses"),
        (dict(bonuses=("error",)), dict(error_bonus=-1.0), "error_bonus=-1.0"),
    ],
)
def test_settings_of_bonuses_that_are_wrong(config, hyper, message):
    with pytest.raises(ValueError, match=message):
        varibad(FAMILY, Config(**config), Hyper(**hyper))
