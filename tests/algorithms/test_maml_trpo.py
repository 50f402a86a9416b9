import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import learners, tasks
from jaxmeta.algorithms.maml_trpo import Config, Hyper, maml_trpo
from jaxmeta.estimators.surrogates import SURROGATES
from jaxmeta.rollouts.lifetime import replay

SMALL = dict(num_streams=3, hidden_sizes=(2,), rematerialize=False)  # sooner compiled
NUM_TASKS = 2


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=4)


class Written:
    """Loss and divergence of the meta-batch as functions of θ, for derivatives by plain autodiff."""

    def __init__(self, family, config):
        self.algorithm = maml_trpo(family, config)
        self.step = jax.jit(self.algorithm.step)
        self.parts = learners.gradient_learner(family, config)

        # The program that the steps begin with, so that θ is theirs to the last bit.
        self.init = jax.jit(self.algorithm.init)
        self.meta = self.init(jax.random.key(0), Hyper()).meta

        @jax.jit
        def recorded(meta):
            drawn = tasks.sample_tasks(jax.random.key(1), family, NUM_TASKS, split="train")
            return drawn, learners.gradient.record(jax.random.key(2), meta, drawn, parts=self.parts)

        self.drawn, (self.keys, self.lived) = recorded(self.meta)
        self.theta, self.unravel = jax.flatten_util.ravel_pytree(self.meta.params)

    def __call__(self, theta):
        """Means at θ of the loss, of KL(old || new) of the adapted policies and of the ratio's loss."""
        meta = self.meta._replace(params=self.unravel(theta))

        def of_task(key, history):
            again = replay(key, meta, history.trajectories, learner=self.parts.learner)
            data, old, new = jax.tree.map(
                lambda x: x[-1], (history.trajectories, history.agent, again.agent)
            )
            loss = self.parts.loss(new, data, meta.hyper, SURROGATES["score"])
            divergence = self.parts.distribution(old, data).kl(self.parts.distribution(new, data))
            ratio = self.parts.loss(new, data, meta.hyper, SURROGATES["lvc"])
            return loss, divergence.mean(), ratio

        return jax.tree.map(jnp.mean, jax.vmap(of_task)(self.keys, self.lived))

    def moved(self, hyper):
        state = self.init(jax.random.key(0), hyper)
        after, metrics = self.step(jax.random.key(2), state, self.drawn)
        return jax.flatten_util.ravel_pytree(after.meta.params)[0], metrics


def test_the_step_is_the_natural_meta_gradient_and_the_search_halves_it(x64, family):
    """Against F by twice differentiating the divergence through the adaptation, and a dense solve; then, in a
    region so large that the quadratic model does not hold, against the search written out."""
    hyper = Hyper(max_kl=1e-6, damping=1e-2)  # so short that no halving is needed
    written = Written(family, Config(cg_steps=60, **SMALL))

    @jax.jit
    def derivatives(theta):
        gradient = jax.grad(lambda theta: written(theta)[0])(theta)
        return gradient, jax.hessian(lambda theta: written(theta)[1])(theta)

    gradient, fisher = map(np.asarray, derivatives(written.theta))
    damped = fisher + hyper.damping * np.eye(written.theta.size)
    direction = np.linalg.solve(damped, gradient)
    step = np.sqrt(2 * hyper.max_kl / (direction @ damped @ direction)) * direction
    theta, metrics = written.moved(hyper)
    assert metrics["backtracks"] == 0
    np.testing.assert_allclose(written.theta - theta, step, rtol=1e-6, atol=1e-9)

    measure = jax.jit(written)
    before = measure(written.theta)[2]
    for max_kl in (0.3, 3.0):
        theta, metrics = written.moved(hyper._replace(max_kl=max_kl))
        whole = step * np.sqrt(max_kl / hyper.max_kl)
        for i in range(16):
            wanted = written.theta - 0.5**i * whole
            _, kl, loss = measure(wanted)
            if loss < before and kl <= max_kl:
                break
        assert metrics["backtracks"] == i
        np.testing.assert_allclose(theta, wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
    assert i > 0


@pytest.mark.slow
def test_a_step_that_is_never_acceptable_is_not_taken(x64, family):
    """With no halving allowed, and a region so large that the model's full step leaves it."""
    written = Written(family, Config(max_backtracks=0, **SMALL))
    theta, metrics = written.moved(Hyper(max_kl=3.0))
    np.testing.assert_array_equal(theta, written.theta)
    assert metrics["skipped_updates"] == 1
    assert metrics["kl"] == 0
