"""No random key is used twice, but where it is said: by ``jax.random.clone``."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

# The checker of `jax.debug_key_reuse`, which would compile and run what it looks at.
from jax.experimental.key_reuse import _core as key_reuse

from jaxmeta import curricula, datasets, evaluation, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import training
from jaxmeta.types import TimeStep
from tests.probes import made, random_learner, taken_by

# It takes keys for used by operations that it does not know: by one that moves them, and by a solver that is
# handed those of its linear map, and of the transposed one; both of them clone theirs.
key_reuse.key_reuse_signatures[jax.lax.transpose_p] = key_reuse.KeyReuseSignature(
    key_reuse.Forward(0, 0)
)
key_reuse.key_reuse_signatures[jax.lax.linear_solve_p] = key_reuse.KeyReuseSignature()

SETTINGS = {
    "maml": dict(num_updates=2),
    "promp": dict(num_epochs=2),
    "es": dict(population_size=2),
    "reptile": dict(num_updates=1),
    "rl2": dict(num_minibatches=2),
    "dream": dict(num_minibatches=2),
    "recurrent_q": dict(num_minibatches=2, replay_trials=8, replayed_trials=2),
    "recurrent_sac": dict(replay_trials=8, replayed_trials=2, gradient_steps=2),
    "pearl": dict(num_training_tasks=3, replay_steps=20, gradient_steps=2),
    "varibad": dict(num_minibatches=2),
    "meta_gradient": dict(num_agents=2, outer="bootstrap", num_target_updates=2),
}
"""Of algorithms whose defaults would leave out a loop in which keys are drawn."""


def small_algorithm(family, name, **settings):
    module = ALGORITHMS[name]
    if name != "algorithm_distillation":
        settings = dict(num_streams=2) | settings
    return getattr(module, name)(family, module.Config(**settings))


@pytest.fixture(scope="module")
def family():
    return dataclasses.replace(
        tasks.make("tabular", num_states=3, num_actions=2, horizon=4),
        expert_action=lambda task, obs: jnp.zeros((), jnp.int32),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, SETTINGS.get(name, {})) for name in ALGORITHMS if name != "learned_objective"),
        *(
            ("learned_objective", dict(num_agents=2, outer=outer))
            for outer in ("meta_gradient", "es", "pes")
        ),
        ("varibad", dict(num_minibatches=2, replay_trials=8, replayed_trials=2, belief_steps=2)),
    ],
)
def test_training_uses_each_key_once(family, name, settings):
    """From the first state on, through sampling of tasks and several meta-updates."""
    family = taken_by(name, family)
    algorithm = small_algorithm(family, name, **settings)
    more, data = {}, ()
    if name == "algorithm_distillation":
        drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
        lived = datasets.mixtures(
            jax.random.key(2), drawn, family=family, num_streams=2, num_episodes=4
        )
        more["source"] = datasets.windows(lived, 16)
        data, _ = more["source"].load(0)

    def train(key):
        run = training.begin(key, algorithm=algorithm)
        told = dict(algorithm=algorithm, family=family, num_tasks=2, max_updates=2, **more)
        return training.advance(run, jnp.asarray(2), data, **told)

    key_reuse.check_key_reuse(train, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.FAMILIES)
def test_tasks_and_episodes_use_each_key_once(name):
    family = made(name)

    def episode(key):
        task_key, key = jax.random.split(key)
        drawn = tasks.sample_tasks(task_key, family, 2, split="out_of_distribution")
        return evaluation.random_returns(key, drawn, family=family, num_streams=2)

    key_reuse.check_key_reuse(episode, jax.random.key(0))


def test_unsolvable_mazes_use_each_key_once():
    sample = tasks.make("maze", size=3, unsolvable=0.5).train
    key_reuse.check_key_reuse(sample, jax.random.key(0))


def test_evaluation_uses_each_key_once(family):
    algorithm = small_algorithm(family, "maml")

    def evaluate(key, meta, drawn):
        keys = jax.random.split(key)
        settings = dict(learner=algorithm.learner, env=family.env, num_updates=1, num_steps=4)
        return (
            evaluation.adaptation_returns(keys[0], meta, drawn, num_streams=2, **settings),
            evaluation.trials(keys[1], meta, drawn, **settings),
        )

    drawn = tasks.sample_tasks(jax.random.key(0), family, 2, split="test")
    key_reuse.check_key_reuse(
        evaluate, jax.random.key(1), algorithm.init(jax.random.key(2)).meta, drawn
    )


def test_what_is_used_twice_is_found(family):
    """In this library's own loops: a learner that draws its action and its memory from one key."""
    learner = random_learner()

    def act(key, meta, agent, memory, timestep: TimeStep):
        action, log_prob, _ = learner.act(key, meta, agent, memory, timestep)
        return action, log_prob, jax.random.normal(key)

    careless = learner._replace(act=act, memory=lambda meta: jnp.zeros(()))

    def returns(key, drawn):
        return evaluation.adaptation_returns(
            key,
            1.0,
            drawn,
            learner=careless,
            env=family.env,
            num_streams=2,
            num_updates=1,
            num_steps=4,
        )

    drawn = tasks.sample_tasks(jax.random.key(0), family, 2, split="test")
    with pytest.raises(jax.errors.KeyReuseError):
        key_reuse.check_key_reuse(returns, jax.random.key(1), drawn)


@pytest.mark.parametrize("name", ["plr", "accel", "sfl", "roml"])
def test_curricula_use_each_key_once(name):
    """In a draw; changes of tasks, tries of tasks and drawn numbers included."""
    family = tasks.make("maze", size=3, horizon=4)
    if name == "roml":
        family = tasks.make("cartpole", horizon=4)
    algorithm = small_algorithm(family, "rl2", num_minibatches=2)
    curriculum = {
        "plr": lambda: curricula.plr(family, curricula.PLRConfig(capacity=4)),
        "accel": lambda: curricula.accel(family, curricula.ACCELConfig(capacity=4)),
        "sfl": lambda: curricula.sfl(algorithm, family, curricula.SFLConfig(4, 2)),
        "roml": lambda: curricula.roml(family),
    }[name]()
    meta = algorithm.init(jax.random.key(1)).meta
    state = curriculum.init(2)
    key_reuse.check_key_reuse(lambda key: curriculum.draw(key, state, meta, 2), jax.random.key(0))
