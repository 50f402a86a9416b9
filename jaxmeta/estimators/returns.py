"""From rewards to returns and advantages, on one stream ``[T]``.

Every quantity here is one linear recurrence. Discounts, values and the values of the successors come as
vectors, which makes termination and truncation exact without special cases:

* ``discount``: γ times the trajectory's ``discount``, so 0 where the task terminated;
* ``v_next``: the value of the true successor, also where the episode was cut by a time limit;
* ``last``: where an episode ended; recursions do not cross it.

All take them in one order, ``reward, discount, v, v_next, rho, last``; by name where two could be swapped.

Nothing here stops a gradient: γ, λ, rewards and values can all be meta-learned through it.
"""

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.streams import count, is_last, unless
from jaxmeta.recurrences import linear_recurrence


def td_errors(
    reward: jax.Array, discount: jax.Array, *, v: jax.Array, v_next: jax.Array
) -> jax.Array:
    """``δ_t = r_t + discount_t v_next_t - v_t``, all ``[T]``, or of any one shape; ``discount`` also ``[]``."""
    checks.shapes("... ...? ... ...", reward=reward, discount=discount, v=v, v_next=v_next)
    return reward + discount * v_next - v


def gae(
    delta: jax.Array, discount: jax.Array, *, last: jax.Array, lambda_: jax.Array | float
) -> jax.Array:
    """Generalised advantages ``A_t = δ_t + discount_t λ (1 - last_t) A_{t+1}``, all ``[T]``.

    Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", eq. 16. With λ = 1 and v = 0 it is the return.
    """
    checks.shapes("T T T T?", delta=delta, discount=discount, last=last, lambda_=lambda_)
    return linear_recurrence(delta, discount * lambda_ * unless(last, delta), reverse=True)


def advantages_and_targets(
    reward: jax.Array,
    discount: jax.Array,
    *,
    v: jax.Array,
    v_next: jax.Array,
    last: jax.Array,
    lambda_: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """``(A_t, v_t + A_t)``: generalised advantages as in `gae`, and λ-returns, which are targets for v, ``[T]`` each."""
    arrays = dict(reward=reward, discount=discount, v=v, v_next=v_next, last=last)
    checks.shapes("T T T T T T?", **arrays, lambda_=lambda_)
    delta = td_errors(reward, discount, v=v, v_next=v_next)
    advantage = gae(delta, discount, last=last, lambda_=lambda_)
    return advantage, v + advantage


def discounted_returns(
    reward: jax.Array, discount: jax.Array, *, v_next: jax.Array, last: jax.Array
) -> jax.Array:
    """``G_t = r_t + discount_t G_{t+1}``, with ``v_next`` at an episode's and at the stream's end, ``[T]``."""
    checks.shapes("T", reward=reward, discount=discount, v_next=v_next, last=last)
    cut = jnp.where(is_last(last), 1.0, jnp.asarray(last, reward.dtype))
    return linear_recurrence(reward + discount * cut * v_next, discount * (1.0 - cut), reverse=True)


def importance_returns(
    reward: jax.Array, discount: jax.Array, *, v_next: jax.Array, rho: jax.Array, last: jax.Array
) -> jax.Array:
    """``G_t = ρ_t (r_t + discount_t G_{t+1})``: returns by per-decision importance sampling, ``[T]``.

    Precup, Sutton & Singh 2000, "Eligibility traces for off-policy policy evaluation", section 4; with
    ``v_next`` at an episode's and at the stream's end as in `discounted_returns`. ``E[G_t | s_t]`` is the
    value of the policy that the ratios are of, if ``v_next`` is its value there.
    """
    checks.shapes("T", reward=reward, discount=discount, v_next=v_next, rho=rho, last=last)
    cut = jnp.where(is_last(last), 1.0, jnp.asarray(last, reward.dtype))
    now = rho * (reward + discount * cut * v_next)
    return linear_recurrence(now, rho * discount * (1.0 - cut), reverse=True)


def weighted_importance_returns(
    reward: jax.Array,
    discount: jax.Array,
    *,
    v_next: jax.Array,
    rho: jax.Array,
    last: jax.Array,
    good: jax.Array | None = None,
) -> jax.Array:
    """`importance_returns` with each weight divided by its mean over streams, all ``[N, T]``.

    The weight of the reward at k in the return from t is ``w_tk = ρ_t ... ρ_k``, whose mean is 1 in
    expectation; dividing by the mean that came out bounds it by N (Precup et al. 2000, weighted
    per-decision estimator). Biased by O(1/N), consistent; one stream alone returns what it saw. The
    streams' episodes begin and end together, or as if: w_tk is of those streams whose episode lasts from t to k,
    and of those that are ``good`` (bool ``[N]``; None is all). The values of the others mean nothing.
    """
    arrays = dict(reward=reward, discount=discount, v_next=v_next, rho=rho, last=last)
    good = jnp.ones(rho.shape[:1], bool) if good is None else good
    checks.shapes("NT NT NT NT NT N", **arrays, good=good)
    cut = jnp.where(is_last(last[0])[None], 1.0, jnp.asarray(last, reward.dtype))
    step = jnp.arange(reward.shape[1])

    def products(x: jax.Array, begin: jax.Array) -> jax.Array:
        """``prod_{begin_t <= i <= k} x_i``, ``[T, T]``; no quotient of products from 0, which underflow."""
        return jnp.cumprod(jnp.where(begin[:, None] <= step[None, :], x[None, :], 1.0), axis=1)

    def terms(discount: jax.Array, cut: jax.Array, rho: jax.Array) -> tuple:
        """Weights, discounts and a mask of the steps k that follow t in one stream, ``[T, T]`` each."""
        episode = jnp.cumsum(cut) - cut
        follows = (step[:, None] <= step[None, :]) & (episode[:, None] == episode[None, :])
        before = jnp.concatenate([jnp.ones_like(discount[:1]), discount[:-1]])
        return products(rho, step), products(before, step + 1), follows

    w, factor, follows = jax.vmap(terms)(discount, cut, rho)
    counted = follows & good[:, None, None]
    total = jnp.sum(jnp.where(counted, w, 0.0), axis=0, keepdims=True)
    mean = total / count(counted, total, axis=0, keepdims=True)
    weight = jnp.where(follows, w / jnp.where(mean > 0.0, mean, 1.0) * factor, 0.0)
    return jnp.einsum("ntk,nk->nt", weight, reward + discount * cut * v_next)


def vtrace_targets(
    reward: jax.Array,
    discount: jax.Array,
    *,
    v: jax.Array,
    v_next: jax.Array,
    rho: jax.Array,
    last: jax.Array,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: jax.Array | float = 1.0,
) -> jax.Array:
    """Targets for ``v`` from a policy with ratios ``ρ_t = π/μ(a_t|s_t)`` to the one that acted, ``[T]``.

    ``v_t + sum_{k>=t} (prod_{t<=i<k} discount_i c_i) min(ρ_k, ρ̄) δ_k`` with ``c_i = λ min(ρ_i, c̄)``:
    Espeholt et al. 2018, "IMPALA", eq. 1, within an episode. The bars make it a family:

    | ρ̄   | c̄   | targets                                                                          |
    |-----|-----|----------------------------------------------------------------------------------|
    | inf | inf | doubly robust (per-decision importance sampling at v = 0; Jiang & Li 2016): where |
    |     |     | episodes end within the stream, ``E[target | s_t] = V^π(s_t)`` whatever v is      |
    | inf | 0   | one-step TD with importance sampling                                             |
    | inf | 1   | the fixed point is still V^π (the form of Retrace, Munos et al. 2016)            |
    | 1   | 1   | V-trace; the fixed point is the value of ``π̄ ∝ min(ρ̄ μ, π)``, between μ and π    |

    c̄ and λ change how fast and how noisily, never what is converged to. With ρ = 1 and bars of at
    least 1 it is ``v`` plus the advantages of `gae`. A derivative through ρ is halved where a ratio
    equals its bar: as in IMPALA, ratios are data.
    """
    arrays = dict(reward=reward, discount=discount, v=v, v_next=v_next, rho=rho, last=last)
    checks.shapes("T T T T T T T? ? ?", **arrays, lambda_=lambda_, rho_bar=rho_bar, c_bar=c_bar)
    delta = td_errors(reward, discount, v=v, v_next=v_next)
    c = jnp.minimum(rho, c_bar)
    return v + gae(jnp.minimum(rho, rho_bar) * delta, discount * c, last=last, lambda_=lambda_)


def action_value_targets(
    reward: jax.Array,
    discount: jax.Array,
    *,
    q: jax.Array,
    v_next: jax.Array,
    c: jax.Array,
    last: jax.Array,
) -> jax.Array:
    """Targets for ``q_t = Q(s_t, a_t)`` of a policy π from experience of another, all ``[T]``.

    ``q_t + sum_{k>=t} (prod_{t<i<=k} discount_{i-1} c_i) δ_k``, ``δ_k = r_k + discount_k v_next_k - q_k``, where
    ``v_next`` is the mean of Q under π at the successor: Munos et al. 2016, "Safe and efficient off-policy
    reinforcement learning", eq. 3. The trace c names the algorithm; with ρ = π/μ(a|s):

    | c            |                                        |
    |--------------|----------------------------------------|
    | λ min(1, ρ)  | Retrace(λ)                             |
    | λ π(a|s)     | tree-backup (Precup et al. 2000)       |
    | λ ρ          | importance sampling: unbiased at λ = 1 |
    | 0            | expected SARSA                         |

    For every c that does not exceed ρ, the fixed point is Q^π.
    """
    checks.shapes("T", reward=reward, discount=discount, q=q, v_next=v_next, c=c, last=last)
    delta = td_errors(reward, discount, v=q, v_next=v_next)
    c_next = jnp.append(c[1:], jnp.zeros_like(c[:1]))
    return q + gae(delta, discount * c_next, last=last, lambda_=1.0)
