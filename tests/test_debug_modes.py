"""jax's ways of debugging work for every algorithm: on a healthy problem none of them finds anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

from jaxmeta import datasets, evaluation, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.rollouts.rollout import begin_stream, rollout
from tests.probes import taken_by, thorough

NUM_TASKS = 2
SMALL = dict(hidden_sizes=(2,))
LIFETIME = SMALL | dict(num_streams=2, num_updates=1)
TRIAL = SMALL | dict(num_streams=1, num_epochs=1, num_minibatches=1, memory_size=2)
WINDOW = SMALL | dict(num_streams=2, num_steps=2, num_agents=NUM_TASKS)
BATCH = dict(
    num_episodes=2,
    gradient_steps=1,
    batch_tasks=1,
    batch_size=2,
    context_size=2,
    encoder_sizes=(2,),
)
SETTINGS = {
    "algorithm_distillation": SMALL | dict(memory="gru", memory_size=2, num_episodes=1),
    "decision_pretrained": SMALL | dict(memory="gru", memory_size=2, num_episodes=1),
    "dream": TRIAL | dict(encoder_sizes=(2,), bottleneck_sizes=(2,), latent_size=2),
    "es": LIFETIME | dict(population_size=2),
    "imaml": LIFETIME | dict(solver_steps=1, cg_steps=1),
    "learned_objective": WINDOW | dict(num_updates=1, lifespan=2),
    "maml_trpo": LIFETIME | dict(cg_steps=1, max_backtracks=1),
    "meta_gradient": WINDOW,
    "pearl": SMALL
    | BATCH
    | dict(num_streams=1, num_training_tasks=2, replay_steps=4, latent_size=2),
    "promp": LIFETIME | dict(num_epochs=1),
    "rl2": TRIAL,
    "recurrent_q": TRIAL | dict(replay_trials=4, replayed_trials=2),
    "recurrent_sac": SMALL
    | dict(memory_size=2, replay_trials=4, replayed_trials=2, gradient_steps=1),
    "varibad": TRIAL,
}
"""Each algorithm at its smallest, where that is not `LIFETIME`."""


def made(name, **more):
    """``key -> (metrics, rewards)`` of an algorithm: ``init``, a ``step`` and a little acting."""
    module = ALGORITHMS[name]
    family = dataclasses.replace(
        tasks.make("tabular", num_states=2, num_actions=2, horizon=2),
        expert_action=lambda task, obs: jnp.zeros((), jnp.int32),
    )
    family = taken_by(name, family)
    config = module.Config(**SETTINGS.get(name, LIFETIME) | more)
    algorithm = getattr(module, name)(family, config)
    world = dict(learner=algorithm.learner, env=family.env)

    def run(key):
        init_key, task_key, step_key, act_key, agent_key, stream_key = jax.random.split(key, 6)
        drawn = tasks.sample_tasks(task_key, family, NUM_TASKS, split="train")
        batch = drawn
        if name == "algorithm_distillation":
            lived = datasets.mixtures(
                jax.random.fold_in(step_key, 1), drawn, family=family, num_streams=1, num_episodes=2
            )
            batch = jax.tree.map(lambda x: x[:, 0], lived.data)
        state, metrics = algorithm.step(step_key, algorithm.init(init_key), batch)
        task, meta = jax.tree.map(lambda x: x[0], drawn), state.meta
        agent = algorithm.learner.init(agent_key, meta)
        stream = begin_stream(stream_key, meta, task, **world)
        _, seen = rollout(act_key, meta, task, agent, stream, **world, num_steps=2)
        return metrics, seen.reward

    return run


KEY = jax.random.key(0)
ALL = pytest.mark.parametrize("name", sorted(ALGORITHMS))


KINDS = (
    "es",
    "learned_objective",
    "maml",
    "meta_actor_critic",
    "meta_gradient",
    "meta_value",
    "pearl",
    "recurrent_sac",
    "rl2",
)
"""An algorithm for each kind of learner and of meta-update: the others are made of the same parts."""


def slow_but(*fast):
    """All `KINDS`, and all but these are slow: what the modes look at, algorithms of a kind share."""
    return pytest.mark.parametrize("name", thorough(KINDS, fast))


@pytest.mark.parametrize("name", thorough(sorted(ALGORITHMS), ("maml", "meta_gradient", "rl2")))
def test_strict_promotion_and_raw_keys(name):
    """Nothing is cast without a word but by optax and evosax, which are called under jax's own rules.

    Several of gymnax's environments cast (CartPole, Acrobot, Catch, MinAtar's): the family is our own.
    """
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(made(name), jax.random.PRNGKey(0))


@slow_but("maml")
def test_keys_of_other_generators(name):
    jax.eval_shape(made(name), jax.random.key(0, impl="rbg"))


@pytest.mark.parametrize("name", ["navigation", "tabular", "bernoulli_bandit", "t_maze"])
def test_strict_promotion_in_evaluation(name):
    family = tasks.make(name)

    def returns(key):
        drawn = tasks.sample_tasks(key, family, NUM_TASKS, split="test")
        world = dict(env=family.env, num_updates=1, num_steps=family.horizon)
        learner = evaluation.controller_learner(lambda key, task, obs: family.random_action(key))
        task = jax.tree.map(lambda x: x[0], drawn)
        trials = evaluation.trials(key, task, drawn, learner=learner, **world)
        return (
            evaluation.random_returns(key, drawn, family=family),
            evaluation.reference_returns(key, drawn, family=family),
            evaluation.adaptation_returns(
                key, task, drawn, learner=learner, num_streams=2, **world
            ),
            evaluation.episode_returns(trials, 2),
        )

    with jax.numpy_dtype_promotion("strict"):
        tasks.check_promises(family)
        jax.eval_shape(returns, KEY)


class KeptKey(environment.Environment):
    """Its state is a key, from which every reward is drawn."""

    default_params = jnp.zeros(())

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (1,), jnp.float32)

    def reset_env(self, key, params):
        return jnp.zeros(1), key

    def step_env(self, key, state, action, params):
        state, now = jax.random.split(state)
        return jnp.zeros(1), state, jax.random.normal(now), jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)


def test_raw_keys_draw_what_typed_keys_draw():
    """Also where the environment keeps its key."""
    world = dict(
        learner=evaluation.controller_learner(
            lambda key, task, obs: jax.random.randint(key, (), 0, 2)
        ),
        env=KeptKey(),
    )

    def acted(key):
        stream = begin_stream(key, jnp.zeros(()), jnp.zeros(()), **world)
        return rollout(key, jnp.zeros(()), jnp.zeros(()), (), stream, num_steps=3, **world)[1]

    raw, typed = acted(jax.random.PRNGKey(3)), acted(jax.random.key(3))
    np.testing.assert_array_equal(raw.reward, typed.reward)
    np.testing.assert_array_equal(raw.action, typed.action)
    assert len(set(typed.reward.tolist())) == 3


NOTHING_LEARNED = ("maml", "meta_actor_critic", "meta_value")
"""Whose loops may be of no rounds, which `jax.disable_jit` cannot tell the shapes of."""


@slow_but("rl2")
def test_without_compilation(name):
    """Traced, so that loops run in Python and nothing else runs."""
    with jax.disable_jit():
        jax.eval_shape(made(name), KEY)


@pytest.mark.parametrize(
    "name", [x if x == "maml" else pytest.param(x, marks=pytest.mark.slow) for x in NOTHING_LEARNED]
)
def test_loops_of_no_rounds_without_compilation(name):
    with jax.disable_jit():
        jax.eval_shape(made(name, num_updates=0), KEY)


@pytest.mark.slow
def test_without_compilation_in_truth():
    """Operation by operation."""
    with jax.disable_jit():
        metrics, _ = made("maml")(KEY)
    assert all(jnp.isfinite(x) for x in metrics.values())


@slow_but("rl2")
def test_no_tracer_is_left(name):
    with jax.checking_leaks():
        jax.eval_shape(made(name), KEY)


@slow_but("rl2")
def test_no_number_is_nan(name):
    with jax.debug_nans(True):
        jax.jit(made(name))(KEY)
