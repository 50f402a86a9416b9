"""Finite MDPs small enough to be solved exactly: the oracle that estimators are held against.

Everything is differentiable, so automatic differentiation of `expected_return` is the true gradient,
Hessian and so on. Run it in float64. Sampling is replaced by enumeration: `trajectories` lists every
path of states and actions and `probabilities` its weights, so the expectation of any estimator is a
weighted sum, exact to rounding.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MDP(NamedTuple):
    """A finite MDP, γ included."""

    transition: jax.Array  # [S, A, S], p(s' | s, a)
    reward: jax.Array  # [S, A]
    initial: jax.Array  # [S]
    discount: jax.Array  # [], γ


def random_mdp(key: jax.Array, *, num_states: int, num_actions: int, discount: float) -> MDP:
    """Flat-Dirichlet transitions and initial state, standard normal rewards."""
    transition_key, reward_key, initial_key = jax.random.split(key, 3)
    flat = jnp.ones(num_states)
    return MDP(
        jax.random.dirichlet(transition_key, flat, (num_states, num_actions)),
        jax.random.normal(reward_key, (num_states, num_actions)),
        jax.random.dirichlet(initial_key, flat),
        jnp.asarray(discount, float),
    )


def values(mdp: MDP, policy: jax.Array, horizon: int) -> jax.Array:
    """``V_t(s)`` of ``policy [S, A]`` with ``horizon - t`` steps to go, ``[H + 1, S]``; ``V_H = 0``.

    Backward induction: ``Q_t = R + γ P V_{t+1}``, ``V_t = sum_a π Q_t``.
    """
    v = jnp.zeros_like(mdp.reward[:, 0])
    table = [v]
    for _ in range(horizon):
        q = mdp.reward + mdp.discount * mdp.transition @ v
        v = jnp.sum(policy * q, axis=1)
        table.append(v)
    return jnp.stack(table[::-1])


def expected_return(mdp: MDP, policy: jax.Array, horizon: int) -> jax.Array:
    """``J = E sum_{t<H} γ^t r_t`` of ``policy [S, A]``, ``[]``."""
    return mdp.initial @ values(mdp, policy, horizon)[0]


def trajectories(num_states: int, num_actions: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """All paths of ``horizon`` steps: states and actions, int ``[(S·A)^H, H]`` each."""
    steps = list(itertools.product(range(num_states), range(num_actions)))
    paths = np.array(list(itertools.product(steps, repeat=horizon)), np.int32)
    return paths[..., 0], paths[..., 1]


def probabilities(mdp: MDP, policy: jax.Array, states: jax.Array, actions: jax.Array) -> jax.Array:
    """``p(τ)`` of paths ``[n, H]`` under ``policy [S, A]``, ``[n]``.

    The transition after the last step is not part of a path, so over all `trajectories` it sums to 1.
    """
    moves = mdp.transition[states[:, :-1], actions[:, :-1], states[:, 1:]]
    return (
        mdp.initial[states[:, 0]]
        * jnp.prod(moves, axis=1)
        * jnp.prod(policy[states, actions], axis=1)
    )
