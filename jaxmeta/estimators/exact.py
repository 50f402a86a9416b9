"""Finite MDPs small enough to be solved exactly: the oracle that estimators are held against.

Everything is differentiable, so automatic differentiation of `expected_return` (see `derivatives`) is
the true gradient, Hessian and so on. Run it in float64. Sampling is replaced by enumeration:
`trajectories` lists every path of states and actions and `probabilities` its weights, so the
expectation of any estimator is a weighted sum, exact to rounding; `batches` does the same for batches
of N paths.

Adaptation has **two** exact objectives, and a meta-gradient estimator is unbiased for at most one:
`limit_objective` adapts by the true gradient, ``J(θ + α ∇J(θ))``, the limit of many streams;
`finite_batch_objective` adapts by what a batch of N streams says, ``E_{D ~ p_θ^N} J(U(θ, D))``, which is
what an agent with N streams earns. They differ by O(1/N).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks


class MDP(NamedTuple):
    """A finite MDP, γ included."""

    transition: jax.Array
    """``[S, A, S]``, p(s' | s, a)."""
    reward: jax.Array
    """``[S, A]``."""
    initial: jax.Array
    """``[S]``."""
    discount: jax.Array
    """``[]``, γ."""


@checks.arguments
def random_mdp(key: jax.Array, *, num_states: int, num_actions: int, discount: float) -> MDP:
    """Flat-Dirichlet transitions and initial state, standard normal rewards."""
    checks.at_least("num_states", num_states, 1)
    checks.at_least("num_actions", num_actions, 1)
    checks.between("discount", discount, 0, 1)
    transition_key, reward_key, initial_key = jax.random.split(key, 3)
    flat = jnp.ones(num_states)
    return MDP(
        jax.random.dirichlet(transition_key, flat, (num_states, num_actions)),
        jax.random.normal(reward_key, (num_states, num_actions)),
        jax.random.dirichlet(initial_key, flat),
        jnp.asarray(discount, float),
    )


def softmax_linear(features: jax.Array, theta: jax.Array) -> jax.Array:
    """``π(a|s) ∝ exp(φ(s, a)·θ)`` for ``features [S, A, F]`` and ``theta [F]``, ``[S, A]``."""
    checks.shapes("SAF F", features=features, theta=theta)
    return jax.nn.softmax(features @ theta)


@checks.arguments
def values(mdp: MDP, policy: jax.Array, horizon: int) -> jax.Array:
    """``V_t(s)`` of ``policy [S, A]`` with ``horizon - t`` steps to go, ``[H + 1, S]``; ``V_H = 0``.

    Backward induction: ``Q_t = R + γ P V_{t+1}``, ``V_t = sum_a π Q_t``.
    """
    _check(mdp, policy=policy)
    checks.at_least("horizon", horizon, 0)
    v = jnp.zeros_like(mdp.reward[:, 0])
    table = [v]
    for _ in range(horizon):
        q = mdp.reward + mdp.discount * mdp.transition @ v
        v = jnp.sum(policy * q, axis=1)
        table.append(v)
    return jnp.stack(table[::-1])


@checks.arguments
def expected_return(mdp: MDP, policy: jax.Array, horizon: int) -> jax.Array:
    """``J = E sum_{t<H} γ^t r_t`` of ``policy [S, A]``, ``[]``."""
    return mdp.initial @ values(mdp, policy, horizon)[0]


def _check(mdp: MDP, expected: str = "SA", **arrays: jax.Array) -> None:
    """Raises ValueError unless the shapes of an MDP and of ``arrays`` fit each other."""
    parts = {f"mdp.{name}": x for name, x in mdp._asdict().items()}
    checks.shapes(f"SAS SA S ? {expected}", **parts, **arrays)


@checks.arguments
def derivatives(
    objective: Callable[[jax.Array], jax.Array], theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient ``[F]`` and Hessian ``[F, F]`` of ``objective: [F] -> []`` at ``theta``."""

    def gradient(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = jax.grad(objective)(theta)
        return g, g

    checks.shapes("F", theta=theta)
    hessian, g = jax.jacfwd(gradient, has_aux=True)(theta)
    return g, hessian


def trajectories(
    num_states: int, num_actions: int, horizon: int, *, initial_state: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All paths of ``horizon`` steps: states and actions, int ``[(S·A)^H, H]`` each.

    They are NumPy's: `jnp.asarray` them where they are indexed by traced numbers. With ``initial_state``, those that begin there: a factor S fewer, for an MDP that always does.
    """
    sizes = dict(num_states=num_states, num_actions=num_actions, horizon=horizon)
    for name, size in sizes.items():
        checks.at_least(name, size, 1)
    if initial_state is not None:
        checks.at_least("initial_state", initial_state, 0, num_states - 1)
    steps = list(itertools.product(range(num_states), range(num_actions)))
    paths = np.array(list(itertools.product(steps, repeat=horizon)), np.int32)
    if initial_state is not None:
        paths = paths[paths[:, 0, 0] == initial_state]
    return paths[..., 0], paths[..., 1]


@checks.arguments
def probabilities(mdp: MDP, policy: jax.Array, states: jax.Array, actions: jax.Array) -> jax.Array:
    """``p(τ)`` of paths ``[n, H]`` under ``policy [S, A]``, ``[n]``.

    The transition after the last step is not part of a path, so over all `trajectories` it sums to 1.
    """
    _check(mdp, "SA nH nH", policy=policy, states=states, actions=actions)
    moves = mdp.transition[states[:, :-1], actions[:, :-1], states[:, 1:]]
    return (
        mdp.initial[states[:, 0]]
        * jnp.prod(moves, axis=1)
        * jnp.prod(policy[states, actions], axis=1)
    )


@checks.arguments
def limit_objective(
    objective: Callable[[jax.Array], jax.Array],
    theta: jax.Array,
    step_size: jax.Array | float,
    num_updates: int = 1,
) -> jax.Array:
    """``J(θ_K)`` after K steps ``θ_{k+1} = θ_k + α ∇J(θ_k)``, ``[]``: adaptation on infinitely many streams.

    For any differentiable ``objective: [F] -> []``. With K = 1 its gradient is ``(I + α H) ∇J(θ')``.
    """
    checks.shapes("F ?", theta=theta, step_size=step_size)
    checks.at_least("num_updates", num_updates, 0)
    for _ in range(num_updates):
        theta = theta + step_size * jax.grad(objective)(theta)
    return objective(theta)


def batches(num_outcomes: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All batches of N draws from P outcomes, whatever their order.

    Returns:
        indices: int ``[C, N]``, sorted in each row; ``C = (P + N - 1 choose N)``.
        multiplicity: float ``[C]``, the number of orders of each: ``N! / prod_p n_p!``.
    """
    checks.at_least("num_outcomes", num_outcomes, 1)
    checks.at_least("batch_size", batch_size, 1)
    rows = itertools.combinations_with_replacement(range(num_outcomes), batch_size)
    size = math.comb(num_outcomes + batch_size - 1, batch_size) * batch_size
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, size)
    indices = flat.reshape(-1, batch_size)
    multiplicity = run = np.ones(len(indices))
    for n in range(
        1, batch_size
    ):  # a multinomial coefficient at every n, so no division leaves a rest
        run = np.where(indices[:, n] == indices[:, n - 1], run + 1.0, 1.0)
        multiplicity = multiplicity * (n + 1) / run
    return indices, multiplicity


@checks.arguments
def batch_expectation(
    statistic: Callable[[jax.Array], Any],
    probability: jax.Array,
    *,
    batch_size: int,
    chunk_size: int = 1024,
) -> Any:
    """``E_{D ~ p^N} statistic(D)`` of N independent draws from P outcomes, by enumeration.

    Differentiable in ``probability`` and in what ``statistic`` closes over. Where the statistic is a dict, the result has
    its keys sorted, as all of JAX's trees.

    Args:
        statistic: ``indices [N] -> tree of arrays``, a function of the batch that ignores its order.
        probability: ``[P]``, of each outcome.
        batch_size: N; there are ``(P + N - 1 choose N)`` batches.
        chunk_size: Batches looked at at a time, which bounds memory.
    """
    checks.shapes("P", probability=probability)
    checks.at_least("chunk_size", chunk_size, 1)
    indices, multiplicity = batches(probability.shape[0], batch_size)
    chunk_size = min(chunk_size, len(indices))
    padding = -len(indices) % chunk_size  # with batches of multiplicity 0
    rows = (
        jnp.asarray(np.pad(indices, ((0, padding), (0, 0))).reshape(-1, chunk_size, batch_size)),
        jnp.asarray(np.pad(multiplicity, (0, padding)), probability.dtype).reshape(-1, chunk_size),
    )

    def term(indices: jax.Array, multiplicity: jax.Array) -> Any:
        weight = multiplicity * jnp.prod(probability[indices])
        return jax.tree.map(lambda x: weight * x, statistic(indices))

    def total(rows: tuple[jax.Array, jax.Array]) -> Any:
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(term)(*rows))

    # Without a loop, in which an expectation of expectations would be traced again and again.
    if len(rows[0]) == 1:
        return total(jax.tree.map(lambda x: x[0], rows))
    # Without the checkpoint the reverse pass would keep what every batch computed.
    totals = jax.lax.map(jax.checkpoint(total), rows)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)


@checks.arguments
def finite_batch_objective(
    objective: Callable[[jax.Array], jax.Array],
    update: Callable[[jax.Array, jax.Array], jax.Array],
    probabilities: Callable[[jax.Array], jax.Array],
    theta: jax.Array,
    *,
    batch_size: int,
    num_updates: int = 1,
    chunk_size: int = 1024,
) -> jax.Array:
    """``F_{N,K}(θ) = E_{D ~ p_θ^N} F_{N,K-1}(U(θ, D))`` with ``F_{N,0} = J``, ``[]``, by enumeration.

    Differentiable in ``theta``: its gradient is the exact meta-gradient of an agent that adapts K times
    on N streams, through the updates *and* through the distribution of what they were made from. No
    estimator's code has a part in it but ``update``.

    Args:
        objective: ``J: [F] -> []``, such as `expected_return` of a policy.
        update: ``(theta [F], indices [N]) -> theta [F]``: adaptation on the outcomes of these indices.
        probabilities: ``theta [F] -> [P]``, of each outcome.
        theta: ``[F]``.
        batch_size: N.
        num_updates: K; ``(P + N - 1 choose N)^K`` adapted policies are looked at.
        chunk_size: Batches looked at at a time, which bounds memory.
    """
    checks.shapes("F", theta=theta)
    checks.at_least("num_updates", num_updates, 0)
    if num_updates == 0:
        return objective(theta)

    def after(indices: jax.Array) -> jax.Array:
        return finite_batch_objective(
            objective,
            update,
            probabilities,
            update(theta, indices),
            batch_size=batch_size,
            num_updates=num_updates - 1,
            chunk_size=chunk_size,
        )

    return batch_expectation(
        after, probabilities(theta), batch_size=batch_size, chunk_size=chunk_size
    )
