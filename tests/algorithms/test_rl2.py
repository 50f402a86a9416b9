import chex
import jax
import numpy as np
import pytest

from jaxmeta import evaluation, learners, references, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.networks import recurrent
from jaxmeta.networks.graph_actor_critic import graph_actor_critic
from jaxmeta.runs import training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="gur"), "memory='gur' is unknown: did you mean 'gru'"),
        (dict(precision="bf16"), "precision='bf16' is unknown: did you mean 'bfloat16'"),
        (dict(memory_size=0), "memory_size=0 must be at least 1"),
        (dict(encoder_sizes=(8, 0)), "encoder_sizes=0 must be at least 1"),
        (dict(num_episodes=0), "num_episodes=0 must be at least 1"),
        (dict(remembers="always"), "remembers='always' is unknown"),
        (dict(loss="a2c"), "num_epochs=4 and num_minibatches=4 must be 1 with loss='a2c'"),
        (dict(loss="trpo"), "loss='trpo' is unknown"),
        (dict(memory="counts", memory_size=8), "memory_size=8 has no effect with memory='counts'"),
        (dict(memory="counts", encoder_sizes=(8,)), "encoder_sizes=.8,. has no effect"),
        (dict(memory="counts", hidden_sizes=[8]), "leave it at its default ()"),
        (dict(head="linear"), "head='linear' is unknown"),
        (dict(head="hyper"), "head='hyper' reads the encoder's output: set encoder_sizes"),
        (dict(aggregation="mean"), "aggregation='mean' is unknown"),
        (dict(memory="counts", aggregation="max"), "aggregation='max' has no effect"),
        (dict(memory="counts", precision="bfloat16"), "precision='bfloat16' has no effect"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_bad_hyper_parameters_are_named():
    with pytest.raises(ValueError, match="anneal_updates=0 must lie between 1"):
        rl2(tasks.make("bernoulli_bandit"), hyper=Hyper(anneal_updates=0))


def test_counts_are_a_memory_with_a_policy_of_their_own():
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=4)
    ours = jax.jit(rl2(family, Config(memory="counts")).init)(jax.random.key(0))
    own = jax.jit(rl2(family, network=graph_actor_critic(family)).init)(jax.random.key(0))
    chex.assert_trees_all_equal(ours.meta, own.meta)
    with pytest.raises(ValueError, match="needs one-hot states"):
        rl2(tasks.make("catch"), Config(memory="counts"))


def test_a_head_and_an_aggregation_are_those_of_their_names():
    family = tasks.make("bernoulli_bandit", num_arms=3, num_pulls=3)
    config = Config(
        head="hyper", aggregation="max", memory_size=4, encoder_sizes=(5,), hidden_sizes=(6,)
    )
    params = jax.eval_shape(rl2(family, config).init, jax.random.key(0)).meta.params
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes["memory"]["joined"]["kernel"] == (4, 4)
    weights = jax.tree.leaves(shapes["policy"], is_leaf=lambda x: isinstance(x, tuple))
    assert {(5, 6), (6, 3), (4, 5, 6), (4, 6, 3)} <= set(weights)


def test_objects_are_what_names_stand_for():
    """A network and a loss are the ones of their names: the same parameters, drawn and learned."""
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=3)
    one_step = dict(num_epochs=1, num_minibatches=1)
    named = rl2(family, Config(memory="lstm", memory_size=5, loss="a2c", **one_step))
    given = rl2(
        family, Config(**one_step), memory=recurrent.lstm(5), loss=learners.trial_gradients.a2c
    )

    def stepped(algorithm):
        drawn = tasks.sample_tasks(jax.random.key(1), family, 4, split="train")
        return algorithm.step(jax.random.key(2), algorithm.init(jax.random.key(0)), drawn)

    chex.assert_trees_all_equal(*(jax.jit(stepped, static_argnums=0)(x) for x in (named, given)))


@pytest.mark.parametrize(
    ("settings", "objects", "message"),
    [
        (dict(memory_size=8), {"memory"}, "memory_size=8 has no effect with the argument memory="),
        (dict(memory="lstm"), {"memory"}, "memory='lstm' has no effect with the argument memory="),
        (dict(precision="bfloat16"), {"memory"}, "precision='bfloat16' has no effect"),
        (
            dict(memory_size=8),
            {"network"},
            "memory_size=8 has no effect with the argument network=",
        ),
        (dict(hidden_sizes=(8,)), {"network"}, "hidden_sizes=.8,. has no effect"),
        ({}, {"network", "memory"}, "memory= has no effect with the argument network="),
        (dict(loss="a2c", num_epochs=1, num_minibatches=1), {"loss"}, "loss='a2c' has no effect"),
        ({}, {"loss"}, "num_epochs=4 and num_minibatches=4 must be 1 with loss='a2c'"),
    ],
)
def test_a_setting_beside_an_object_in_its_place_is_refused(settings, objects, message):
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=4)
    given = {
        "memory": recurrent.gru(8),
        "network": graph_actor_critic(family),
        "loss": learners.trial_gradients.a2c,
    }
    with pytest.raises(ValueError, match=message):
        rl2(family, Config(**settings), **{name: given[name] for name in objects})


def test_a2c_takes_no_clip():
    family = tasks.make("bernoulli_bandit")
    config = Config(loss="a2c", num_epochs=1, num_minibatches=1)
    with pytest.raises(ValueError, match="clip=0.3 has no effect with loss='a2c'"):
        rl2(family, config, Hyper(clip=0.3))


def test_an_encoder_stands_before_the_memory_and_is_seen_beside_it():
    """Shapes say so: the memory reads the encoder's width, the heads that and the memory's."""
    family = tasks.make("gridnavi")
    plain, encoded = (
        jax.eval_shape(
            rl2(family, Config(memory="linear", memory_size=7, encoder_sizes=sizes)).init,
            jax.random.key(0),
        )
        for sizes in ((), (6, 5))
    )
    shapes = [
        {name: [x.shape for x in jax.tree.leaves(tree)] for name, tree in state.meta.params.items()}
        for state in (plain, encoded)
    ]
    num_inputs = family.observation_shape[0] + family.action_space.n + 1 + 2
    assert (num_inputs, 3 * 7) in shapes[0]["memory"]
    assert (7, family.action_space.n) in shapes[0]["policy"]
    assert "encoder" not in shapes[0]
    assert (num_inputs, 6) in shapes[1]["encoder"]
    assert (6, 5) in shapes[1]["encoder"]
    assert (5, 3 * 7) in shapes[1]["memory"]
    assert (7 + 5, family.action_space.n) in shapes[1]["policy"]


WAYS = {  # settings, learning rate, meta-updates, tasks, the share of the optimum
    "ppo": ({}, 3e-3, 200, 1024, 0.95),
    "ppo in bfloat16": (dict(precision="bfloat16"), 3e-3, 100, 1024, 0.9),
    "a2c": (dict(loss="a2c", num_epochs=1, num_minibatches=1), 5e-3, 1000, 256, 0.9),
}


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize("way", WAYS)
def test_it_learns_to_explore(way):
    """Five arms, ten pulls: 0.9 of what the Bayes-optimal agent earns (6.66), or more after longer training.
    Without a memory, or with one that is cleared too often, 5.0 is all there is, and 5.84 by Thompson sampling."""
    settings, learning_rate, meta_updates, num_tasks, share = WAYS[way]
    family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
    hyper = Hyper(learning_rate=learning_rate, discount=1.0, anneal_updates=meta_updates)
    algorithm = rl2(family, Config(memory_size=32, **settings), hyper)
    run = training.train(
        algorithm, family, training.Config(meta_updates=meta_updates, num_tasks=num_tasks)
    )
    held_out = tasks.sample_tasks(jax.random.key(1), family, 20_000, split="test")
    rewards = jax.jit(
        lambda key, meta: (
            evaluation.trials(
                key, meta, held_out, learner=algorithm.learner, env=family.env, num_steps=10
            ).reward
        )
    )(jax.random.key(2), run.state.meta)
    best = references.bayes_optimal_bandit(num_arms=5, num_pulls=10)
    earned = float(np.mean(rewards.sum(1)))
    assert earned > share * best, earned
