"""Surrogates: functions of log-probabilities whose derivatives estimate policy gradients.

One formula holds the family. With ``lr_t = log π(a_t|s_t) - log μ(a_t|s_t)``, the discount factor
``g_t = prod_{i<t} discount_i`` and TD errors ``δ_t``,

    L = sum_k g_k w_k(lr) δ_k

on one stream ``[T]``, and an estimator is its weight ``w_k``, the trace that carries the actions up to k
to the TD error at k. Traces restart where an episode starts. ``τ`` is the λ of generalised advantage
estimation. At τ = 1 all are unbiased for the first derivative where π = μ; they differ in higher
derivatives:

| name    | w_k                                 | Hessian                                         |
|---------|-------------------------------------|-------------------------------------------------|
| `score` | sum_{t<=k} τ^{k-t} lr_t             | biased (the original MAML, Finn et al. 2017)    |
| `dice`  | sum_{t<=k} τ^{k-t} (W_t - W_{t-1}), | unbiased (Foerster et al. 2018, Farquhar et al. |
|         | W_t = prod_{i<=t} ρ_i               | 2019), where π ≠ μ too, and at every order      |
| `lvc`   | sum_{t<=k} τ^{k-t} (ρ_t - 1)        | biased, low variance (Rothfuss et al. 2019)     |

Nothing here stops a gradient except where a surrogate is defined by one; recorded log-probabilities are
data already (see `rollout`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta.returns import cumulative_discount, gae, linear_recurrence

Weights = Callable[..., jax.Array]
"""``(log_ratio [T], first [T], tau) -> w [T]``."""

Surrogate = Callable[..., jax.Array]
"""``(log_prob, log_prob_mu, delta, discount, first, tau) -> []``, a value to be maximised; all ``[T]``, tau ``[]``."""


def score(log_ratio: jax.Array, first: jax.Array, tau: jax.Array | float = 1.0) -> jax.Array:
    """``w_k = sum_{t<=k} τ^{k-t} lr_t``, ``[T]``: REINFORCE (Williams 1992).

    Its second derivative lacks the terms in which an action changes the distribution of what follows.
    """
    return linear_recurrence(log_ratio, (1.0 - first) * tau)


def dice(log_ratio: jax.Array, first: jax.Array, tau: jax.Array | float = 1.0) -> jax.Array:
    """``w_k = sum_{t<=k} τ^{k-t} (W_t - W_{t-1})`` with ``W_t = prod_{i<=t} ρ_i``, ``[T]``.

    At τ = 1 it is ``W_k - 1``: DiCE (Foerster et al. 2018) where μ is π stopped, and per-decision
    importance sampling elsewhere. With TD errors of any fixed value function it is the doubly robust
    estimator (Jiang & Li 2016), unbiased for derivatives of every order. At τ < 1 it is Loaded DiCE
    (Farquhar et al. 2019), biased unless the value function is exact.
    """
    keep = 1.0 - first
    log_weight = linear_recurrence(log_ratio, keep)
    # W_{t-1} (ρ_t - 1), not a difference of two exponentials that are nearly equal.
    return linear_recurrence(jnp.exp(log_weight - log_ratio) * jnp.expm1(log_ratio), keep * tau)


def lvc(log_ratio: jax.Array, first: jax.Array, tau: jax.Array | float = 1.0) -> jax.Array:
    """``w_k = sum_{t<=k} τ^{k-t} (ρ_t - 1)``, ``[T]``: the low-variance curvature surrogate.

    Rothfuss et al. 2019, "ProMP: proximal meta-policy search", section 5 (here in TD errors instead
    of advantages); TayPO of order 1.
    """
    return linear_recurrence(jnp.expm1(log_ratio), (1.0 - first) * tau)


def surrogate(
    log_prob: jax.Array,
    log_prob_mu: jax.Array,
    delta: jax.Array,
    discount: jax.Array,
    first: jax.Array,
    tau: jax.Array | float = 1.0,
    *,
    weights: Weights,
) -> jax.Array:
    """``sum_k g_k w_k δ_k`` on one stream, ``[T] -> []``, to be maximised.

    ``log_prob`` is the policy that is differentiated and ``log_prob_mu`` the one that acted;
    ``discount`` is γ times the trajectory's. The sum runs over time: divide by a constant, never by a
    realised length, to keep it unbiased.
    """
    g = cumulative_discount(discount, first)
    return jnp.sum(g * weights(log_prob - log_prob_mu, first, tau) * delta)


def ppo_clip(
    log_prob: jax.Array,
    log_prob_mu: jax.Array,
    delta: jax.Array,
    discount: jax.Array,
    first: jax.Array,
    tau: jax.Array | float = 1.0,
    *,
    epsilon: float = 0.2,
) -> jax.Array:
    """``sum_t g_t min(ρ_t A_t, clip(ρ_t, 1 - ε, 1 + ε) A_t)`` on one stream, ``[T] -> []``, to be maximised.

    Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7, with the advantages
    ``A_t`` of `returns.gae` at λ = τ. At π = μ its gradient is the unclipped one.
    """
    last = jnp.concatenate([first[1:], jnp.zeros_like(first[:1])])
    advantage = gae(delta, discount, last, tau)
    ratio = jnp.exp(log_prob - log_prob_mu)
    clipped = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon)
    g = cumulative_discount(discount, first)
    return jnp.sum(g * jnp.minimum(ratio * advantage, clipped * advantage))


SURROGATES: dict[str, Surrogate] = {
    "score": partial(surrogate, weights=score),
    "dice": partial(surrogate, weights=dice),
    "lvc": partial(surrogate, weights=lvc),
    "ppo_clip": ppo_clip,
}
"""What a configuration may name; add your own under a new name."""
