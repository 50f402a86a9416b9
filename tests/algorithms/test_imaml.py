import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxmeta import learners, rollouts, tasks
from jaxmeta.algorithms.imaml import Config, Hyper, imaml
from jaxmeta.estimators.surrogates import SURROGATES
from tests.probes import thorough

CONFIG = Config(num_streams=3, hidden_sizes=(2,), solver_steps=2000, cg_steps=60)
HYPER = Hyper(step_size=0.1, proximal=4.0)


class World:
    """One task's experience under θ, flat parameters, and the inner loss on it."""

    def __init__(self, **settings):
        self.config = dataclasses.replace(CONFIG, **settings)
        family = tasks.make("navigation", horizon=5)
        self.learner = imaml(family, self.config, HYPER).learner
        self.parts = learners.gradient_learner(family, self.config)
        setup = rollouts.Setup(self.learner, family.env, num_streams=3, num_steps=5)

        @jax.jit
        def lived():
            meta = self.parts.init(jax.random.key(0), HYPER)
            task = family.train(jax.random.key(1))
            history = rollouts.lifetime(jax.random.key(2), meta, task, setup=setup, num_updates=0)
            return meta, jax.tree.map(lambda x: x[0], history.trajectories)

        self.meta, self.data = lived()
        self.theta, self.unravel = jax.flatten_util.ravel_pytree(self.meta.params)
        self.updated = jax.jit(self.update)

    def differences(self):
        """The derivative of the update by moving each number."""
        h = 1e-5
        moves = np.concatenate([h * np.eye(self.theta.size), -h * np.eye(self.theta.size)])
        high, low = np.split(np.stack([self.updated(self.theta + move) for move in moves]), 2)
        return (high - low).T / (2 * h)

    def update(self, theta):
        params = self.unravel(theta)
        meta = self.meta._replace(params=params)
        adapted = self.learner.update(jax.random.key(0), meta, params, self.data)
        return jax.flatten_util.ravel_pytree(adapted)[0]

    def loss(self, theta):
        return self.parts.loss(
            self.unravel(theta), self.data, HYPER, SURROGATES[self.config.inner_surrogate]
        )


@pytest.fixture(params=thorough(["lvc", "dice"], ("dice",)))
def world(x64, request):
    return world_of(request.param)


@functools.lru_cache
def world_of(inner_surrogate):
    """One for all tests of it, which are in float64."""
    return World(inner_surrogate=inner_surrogate)


def test_the_update_solves_the_proximal_problem(world):
    phi = np.asarray(world.updated(world.theta))
    slope = jax.jit(jax.grad(world.loss))(phi) + HYPER.proximal * (phi - world.theta)
    assert np.abs(slope).max() < 1e-10
    assert np.abs(phi - world.theta).max() > 1e-3


def test_the_derivative_is_the_implicit_function_theorem_s(world):
    """(I + ∇²L(φ)/λ)^-1 by a dense inverse, and by finite differences of the solver."""
    jacobian = np.asarray(jax.jit(jax.jacrev(world.update))(world.theta))
    hessian = np.asarray(jax.jit(jax.hessian(world.loss))(world.updated(world.theta)))
    identity = np.eye(world.theta.size)
    np.testing.assert_allclose(
        jacobian, np.linalg.inv(identity + hessian / HYPER.proximal), atol=1e-8
    )
    assert np.abs(jacobian - identity).max() > 1e-3
    np.testing.assert_allclose(jacobian, world.differences(), atol=1e-6)


def test_what_is_not_adapted_is_differentiated_too(x64):
    """The head alone is solved for; its solution depends on the body as well."""
    world = World(adapts="head")
    jacobian = np.asarray(jax.jit(jax.jacrev(world.update))(world.theta))
    np.testing.assert_allclose(jacobian, world.differences(), atol=1e-6)
    body = sum(x.size for x in jax.tree.leaves(world.meta.params["body"]))
    np.testing.assert_array_equal(jacobian[:body], np.eye(world.theta.size)[:body])
    assert np.abs(jacobian[body:, :body]).max() > 1e-4
