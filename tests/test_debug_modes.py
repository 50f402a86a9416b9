"""jax's ways of debugging work for every algorithm: on a healthy problem none of them finds anything."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.rollout import begin_stream, rollout

NUM_TASKS = 2
SMALL = dict(hidden_sizes=(2,))
LIFETIME = SMALL | dict(num_streams=2, num_updates=1)
TRIAL = SMALL | dict(num_streams=1, num_epochs=1, num_minibatches=1, memory_size=2)
WINDOW = SMALL | dict(num_streams=2, num_steps=2, num_agents=NUM_TASKS)
SETTINGS = {
    "es": LIFETIME | dict(population_size=2),
    "imaml": LIFETIME | dict(solver_steps=1, cg_steps=1),
    "learned_objective": WINDOW | dict(num_updates=1, lifespan=2),
    "maml_trpo": LIFETIME | dict(cg_steps=1, max_backtracks=1),
    "meta_gradient": WINDOW,
    "promp": LIFETIME | dict(num_epochs=1),
    "rl2": TRIAL,
    "varibad": TRIAL,
}
"""Each algorithm at its smallest, where that is not `LIFETIME`."""


def made(name, **more):
    """``key -> (metrics, rewards)`` of an algorithm: ``init``, a ``step`` and a little acting."""
    module = ALGORITHMS[name]
    family = tasks.make("tabular", num_states=2, num_actions=2, horizon=2)
    config = module.Config(**SETTINGS.get(name, LIFETIME) | more)
    algorithm = getattr(module, name)(family, config)
    world = dict(learner=algorithm.learner, env=family.env)

    def run(key):
        init_key, task_key, step_key, act_key, agent_key, stream_key = jax.random.split(key, 6)
        drawn = tasks.sample_tasks(task_key, family, NUM_TASKS, split="train")
        state, metrics = algorithm.step(step_key, algorithm.init(init_key), drawn)
        task, meta = jax.tree.map(lambda x: x[0], drawn), state.meta
        agent = algorithm.learner.init(agent_key, meta)
        stream = begin_stream(stream_key, meta, task, **world)
        _, seen = rollout(act_key, meta, task, agent, stream, **world, num_steps=2)
        return metrics, seen.reward

    return run


KEY = jax.random.key(0)
ALL = pytest.mark.parametrize("name", sorted(ALGORITHMS))


@ALL
@pytest.mark.parametrize("kind", ["raw", "rbg"])
def test_keys_of_other_kinds(name, kind):
    key = jax.random.PRNGKey(0) if kind == "raw" else jax.random.key(0, impl="rbg")
    jax.eval_shape(made(name), key)


NOTHING_LEARNED = {
    "maml": dict(num_updates=0),
    "meta_actor_critic": dict(num_updates=0),
    "meta_value": dict(num_updates=0),
    "promp": dict(num_updates=0),
}
"""Loops of no rounds, which `jax.disable_jit` cannot tell the shapes of."""


@pytest.mark.parametrize(
    ("name", "more"), [(x, {}) for x in sorted(ALGORITHMS)] + [*NOTHING_LEARNED.items()]
)
def test_without_compilation(name, more):
    """Traced, so that loops run in Python and nothing else runs."""
    with jax.disable_jit():
        jax.eval_shape(made(name, **more), KEY)


@pytest.mark.slow
def test_without_compilation_in_truth():
    """Operation by operation."""
    with jax.disable_jit():
        metrics, _ = made("maml")(KEY)
    assert all(jnp.isfinite(x) for x in metrics.values())


LEAKS = {"es": "evosax compiles methods for a strategy that holds a traced step size"}
"""Of whose traces something is kept, and why."""


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - LEAKS.keys()))
def test_no_tracer_is_left(name):
    with jax.checking_leaks():
        jax.eval_shape(made(name), KEY)


@pytest.mark.parametrize(
    "name",
    [
        x if x in ("maml", "rl2", "meta_gradient") else pytest.param(x, marks=pytest.mark.slow)
        for x in sorted(ALGORITHMS)
    ],
)
def test_no_number_is_nan(name):
    with jax.debug_nans(True):
        jax.jit(made(name))(KEY)
