import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.maml import Config as MamlConfig
from jaxmeta.algorithms.maml import Hyper as MamlHyper
from jaxmeta.algorithms.maml import maml
from jaxmeta.algorithms.promp import Config, Hyper, promp
from jaxmeta.estimators.baselines import baseline_td_errors
from jaxmeta.networks.policies import default_policy
from jaxmeta.runs import training

SMALL = dict(num_streams=3, hidden_sizes=(4,), rematerialize=False)  # sooner compiled
RATES = dict(learning_rate=0.3, max_grad_norm=1e9, gae_lambda=1.0, discount=0.9)
NUM_TASKS = 2


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=5)


def after(algorithm, family):
    """``(state, drawn tasks, the state after a step, metrics)``, compiled as one."""

    @jax.jit
    def stepped():
        state = algorithm.init(jax.random.key(0))
        drawn = tasks.sample_tasks(jax.random.key(1), family, NUM_TASKS, split="train")
        return state, drawn, *algorithm.step(jax.random.key(2), state, drawn)

    return stepped()


def assert_trees_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.slow
def test_the_first_epoch_is_maml_with_the_likelihood_ratio_inside(x64, family):
    """Where θ = θ_o no ratio is clipped and the divergence has no slope."""
    one_epoch = promp(family, Config(num_epochs=1, **SMALL), Hyper(**RATES), optimizer=optax.sgd)
    reference = maml(
        family, MamlConfig(inner_surrogate="lvc", **SMALL), MamlHyper(**RATES), optimizer=optax.sgd
    )
    found, expected = (after(x, family)[2].meta.params for x in (one_epoch, reference))
    assert_trees_close(found, expected, rtol=1e-10)


@pytest.mark.parametrize("num_updates", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_later_epochs_climb_the_paper_s_objective(x64, family, num_updates):
    """Three epochs against equations 11 and 12 written out on the recorded lifetimes: J^LR inside with
    ratios to the recorded policies, min(ρ A, clip(ρ) A) outside, minus η times the KL of each policy
    that acted before an update."""
    clip, kl_cost, rate = 0.05, 2.0, 0.3
    config = Config(num_epochs=3, num_updates=num_updates, **SMALL)
    hyper = Hyper(clip=clip, kl_cost=kl_cost, **RATES)
    algorithm = promp(family, config, hyper, optimizer=optax.sgd)
    state, drawn, found, metrics = after(algorithm, family)
    policy = default_policy("mlp", (2,), family.action_space, (4,))
    meta = state.meta

    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=3, num_steps=5)

    def live(key, task):
        return rollouts.lifetime(
            key, meta, task, setup=setup, num_updates=num_updates, restart=True
        )

    lived = jax.jit(jax.vmap(live))(jax.random.split(jax.random.key(2), NUM_TASKS), drawn)

    def policies(params, data):
        return jax.vmap(lambda timestep: policy.unroll(params, (), timestep))(data.timestep)

    def advantages(data):
        """γ^t A_t, the discount of the objective included."""
        delta = baseline_td_errors(data, 0.9 * data.discount, 5)
        gamma = 0.9 ** jnp.arange(5)
        return jnp.flip(jnp.cumsum(jnp.flip(gamma[None, :] * delta, 1), 1), 1)

    def objective(theta, history):
        rounds = [jax.tree.map(lambda x, k=k: x[k], history) for k in range(num_updates + 1)]
        phi, divergence = theta, 0.0
        for lived in rounds[:-1]:
            data = lived.trajectories
            divergence += policies(lived.agent, data).kl(policies(phi, data)).mean()

            def likelihood_ratio(phi, data=data):
                ratio = jnp.exp(policies(phi, data).log_prob(data.action) - data.log_prob)
                return jnp.mean(ratio * advantages(data))

            gradient = jax.grad(likelihood_ratio)(phi)
            phi = jax.tree.map(lambda p, g: p + 0.5 * g, phi, gradient)
        data = rounds[-1].trajectories
        ratio = jnp.exp(policies(phi, data).log_prob(data.action) - data.log_prob)
        a = advantages(data)
        clipped = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - clip, 1 + clip) * a)
        return jnp.mean(clipped) - kl_cost * divergence

    theta = meta.params
    slope = jax.jit(jax.grad(lambda t: jax.vmap(objective, (None, 0))(t, lived).mean()))
    for _ in range(3):
        theta = jax.tree.map(lambda p, g: p + rate * np.asarray(g), theta, slope(theta))
    assert_trees_close(found.meta.params, theta, rtol=1e-7, atol=1e-10)
    assert metrics["kl"] > 0


def test_a_meta_update_counts_once_and_its_experience_too(family):
    algorithm = promp(family, Config(num_epochs=4, **SMALL))
    _, _, moved, metrics = after(algorithm, family)
    assert moved.num_updates == 1
    assert moved.optimizer[1][0].count == 4  # Adam's: an epoch each
    assert metrics["env_steps"] == NUM_TASKS * 3 * 5 * 2


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_promp_needs_fewer_meta_updates_than_maml():
    """Dense navigation, 10 tasks × 10 episodes, 60 meta-updates of the same experience: ProMP's further
    epochs close over 80 % of the gap by one step; MAML, which is ProMP of one epoch, is not there yet."""
    family = tasks.make("navigation")

    def closed(algorithm):
        run = training.begin(jax.random.key(0), algorithm=algorithm)
        _, rows = jax.jit(
            lambda run: training.advance(run, 60, algorithm=algorithm, family=family, num_tasks=10)
        )(run)
        before, after = (rows[f"return/{when}"][40:60].mean() for when in ("before", "after"))
        return (after - before) / (-0.13 - before)  # the optimum's mean return is -0.13

    assert closed(promp(family, Config(num_streams=10))) > 0.8
    assert closed(maml(family, MamlConfig(num_streams=10))) < 0.8
