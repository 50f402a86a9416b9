import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import learners, rollouts, tasks
from jaxmeta.algorithms.imaml import Config, Hyper, imaml
from jaxmeta.estimators.surrogates import SURROGATES

CONFIG = Config(num_streams=3, hidden_sizes=(2,), solver_steps=2000, cg_steps=60)
HYPER = Hyper(step_size=0.1, proximal=4.0)


class World:
    """One task's experience under θ, flat parameters, and the inner loss on it."""

    def __init__(self, **settings):
        self.config = dataclasses.replace(CONFIG, **settings)
        family = tasks.make("navigation", horizon=5)
        self.learner = imaml(family, self.config, HYPER).learner
        self.parts = learners.gradient_learner(family, self.config)
        self.meta = self.parts.init(jax.random.key(0), HYPER)
        self.theta, self.unravel = jax.flatten_util.ravel_pytree(self.meta.params)
        drawn = tasks.sample_tasks(jax.random.key(1), family, 1, split="train")
        task = jax.tree.map(lambda x: x[0], drawn)
        setup = rollouts.Setup(self.learner, family.env, num_streams=3, num_steps=5)
        history = rollouts.lifetime(jax.random.key(2), self.meta, task, setup=setup, num_updates=0)
        self.data = jax.tree.map(lambda x: x[0], history.trajectories)

    def update(self, theta):
        params = self.unravel(theta)
        meta = self.meta._replace(params=params)
        adapted = self.learner.update(jax.random.key(0), meta, params, self.data)
        return jax.flatten_util.ravel_pytree(adapted)[0]

    def loss(self, theta):
        return self.parts.loss(
            self.unravel(theta), self.data, HYPER, SURROGATES[self.config.inner_surrogate]
        )


@pytest.fixture(params=["lvc", "dice"])
def world(x64, request):
    return World(inner_surrogate=request.param)


def test_the_update_solves_the_proximal_problem(world):
    phi = jax.jit(world.update)(world.theta)
    slope = jax.grad(world.loss)(phi) + HYPER.proximal * (phi - world.theta)
    assert jnp.abs(slope).max() < 1e-10
    assert jnp.abs(phi - world.theta).max() > 1e-3


def test_the_derivative_is_the_implicit_function_theorem_s(world):
    """(I + ∇²L(φ)/λ)^-1 by a dense inverse, and by finite differences of the solver."""
    update = jax.jit(world.update)
    jacobian = jax.jit(jax.jacrev(world.update))(world.theta)
    hessian = jax.jit(jax.hessian(world.loss))(update(world.theta))
    identity = jnp.eye(world.theta.size)
    np.testing.assert_allclose(
        jacobian, jnp.linalg.inv(identity + hessian / HYPER.proximal), atol=1e-8
    )
    assert jnp.abs(jacobian - identity).max() > 1e-3
    h = 1e-5
    moves = [update(world.theta + h * e) - update(world.theta - h * e) for e in identity]
    np.testing.assert_allclose(jacobian, jnp.stack(moves, 1) / (2 * h), atol=1e-6)


def test_what_is_not_adapted_is_differentiated_too(x64):
    """The head alone is solved for; its solution depends on the body as well."""
    world = World(adapts="head")
    update = jax.jit(world.update)
    jacobian = jax.jit(jax.jacrev(world.update))(world.theta)
    h = 1e-5
    moves = [
        update(world.theta + h * e) - update(world.theta - h * e) for e in jnp.eye(world.theta.size)
    ]
    np.testing.assert_allclose(jacobian, jnp.stack(moves, 1) / (2 * h), atol=1e-6)
    body = jax.flatten_util.ravel_pytree(world.meta.params["body"])[0].size
    np.testing.assert_array_equal(jacobian[:body], jnp.eye(world.theta.size)[:body])
    assert jnp.abs(jacobian[body:, :body]).max() > 1e-4
