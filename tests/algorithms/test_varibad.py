import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import tasks
from jaxmeta.algorithms.varibad import Config, Hyper, varibad

SMALL = dict(
    num_episodes=2, memory_size=6, hidden_sizes=(8,), decoder_sizes=(8,), latent_size=3,
    num_epochs=1, num_minibatches=1, decodes=("rewards", "states"),
)  # fmt: skip
NOTHING = dict(reward_cost=0.0, state_cost=0.0, kl_cost=0.0)


@pytest.fixture(scope="module")
def family():
    return tasks.make("gridnavi", size=3, horizon=4)


def moved(family, hyper, config=Config(**SMALL), num_tasks=6):
    """Which parts of the parameters a step changes."""
    algorithm = varibad(family, config, hyper, optimizer=optax.sgd)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, num_tasks, split="train")
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(after.meta.params))
    changed = {
        name: any(
            bool(jnp.any(x != y))
            for x, y in zip(
                jax.tree.leaves(part), jax.tree.leaves(after.meta.params[name]), strict=True
            )
        )
        for name, part in state.meta.params.items()
    }
    return {name for name, has_moved in changed.items() if has_moved}, metrics


def test_who_learns_from_what(family):
    """The policy's objective reaches policy and value alone; each decoder is moved by its own error, and
    the encoder by whatever needs its belief."""
    belief = {"encoder", "posterior"}
    acting = {"policy", "value"}
    assert moved(family, Hyper(**NOTHING))[0] == acting
    assert moved(family, Hyper(**NOTHING | {"kl_cost": 1.0}))[0] == acting | belief
    rewards = Hyper(**NOTHING | {"reward_cost": 1.0})
    assert moved(family, rewards)[0] == acting | belief | {"rewards"}
    states = Hyper(**NOTHING | {"state_cost": 1.0})
    assert moved(family, states)[0] == acting | belief | {"states"}


def test_metrics(family):
    _, metrics = moved(family, Hyper())
    for name in ("error/rewards", "error/states", "belief_kl", "entropy", "return/trial"):
        assert jnp.isfinite(metrics[name]), name
    assert metrics["belief_kl"] > 0
    assert metrics["env_steps"] == 6 * 2 * 4


@pytest.mark.slow
def test_the_belief_finds_the_goal():
    """Decoded rewards tell the goal's cell from the others once it is found: their error falls below that
    of the best guess that does not depend on what was seen."""
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="none"), "memory='none' is unknown"),
        (dict(latent_size=0), "latent_size=0 must be at least 1"),
        (dict(decoder_sizes=()), "decoder_sizes=.. must have at least one width"),
        (dict(decodes=("reward",)), "decodes='reward' is unknown: did you mean 'rewards'"),
        (dict(decodes=()), "decodes=.. must name 'rewards', 'states' or both"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_bad_hyper_parameters_are_named(family):
    with pytest.raises(ValueError, match="state_cost=-1.0 must lie between 0"):
        varibad(family, hyper=Hyper(state_cost=-1.0))
