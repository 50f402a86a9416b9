r"""Surrogates: functions of log-probabilities whose derivatives estimate policy gradients.

One formula holds the family. With ``lr_t = log π(a_t|s_t) - log μ(a_t|s_t)``, ``ρ_t = exp lr_t``, the
discount factor ``g_t = prod_{i<t} discount_i`` and TD errors ``δ_t``,

$$L = \sum_k g_k w_k δ_k, \quad w_k = \sum_{t \le k} τ^{k-t} d_t$$

on one stream ``[T]``. w_k sums the contributions d_t of all actions up to k. An estimator is defined by
its d_t. The sum starts anew where an episode starts. τ is the λ of generalised advantage estimation. (The literature's weights are these plus 1, which no derivative sees.)

| estimator     | w_k + 1 at τ = 1                    | unbiased at τ = 1, any value function          |
|---------------|-------------------------------------|------------------------------------------------|
| `score`       | 1 + sum_{t<=k} lr_t                 | gradient on-policy (the original MAML)         |
| `lvc`         | 1 + sum_{t<=k} (ρ_t - 1)            | gradient on-policy (ProMP; TayPO of order 1)   |
| `taypo` n     | Taylor's expansion of `dice`'s to   | n derivatives on-policy; off-policy errors of  |
|               | order n in (ρ - 1)                  | order n in the distance for the gradient       |
| `dice`        | prod_{t<=k} ρ_t                     | every derivative, on- and off-policy (DiCE;    |
|               |                                     | importance sampling; doubly robust)            |
| `loaded_dice` | between `lvc` (λ = 0) and `dice`    | gradient on-policy; less bias in the Hessian   |
|               | (λ = 1)                             | and more variance with λ                       |
| `vtrace`      | prod_{t<k} min(ρ_t, c̄) min(ρ_k, ρ̄)  | as `dice` where nothing is truncated           |

# Which one for a meta-gradient?

"Every derivative" in the table is about one estimate of a policy gradient on given experience. A meta-gradient
differentiates an inner step on N streams, and there are two objectives. ∇F_N is the gradient of the expected return after
a step on N streams. These are drawn by the policy that starts, so their distribution has a derivative too. ∇F_∞ is the
gradient of the return after a step along the true policy gradient. DiCE's unbiased Hessian makes its error for both vanish
as N grows, like 1/N. For N streams it is biased, as everything is that leaves the sampling out.

| settings of `algorithms.maml` | ∇F_N | ∇F_∞ | take it |
|---|---|---|---|
| `inner_surrogate="score"`, `sampling_correction="leave_one_out"` | unbiased for every N | error of order 1/N | to be unbiased with many streams: noise falls with N; K = 1 |
| `inner_surrogate="score"`, `sampling_correction="score"` | unbiased for every N | error of order 1/N | the same for K > 1; with few streams |
| `inner_surrogate="dice"` | error of order 1/N | error of order 1/N | with many streams, where the correction is too noisy or too dear |
| `inner_surrogate="lvc"`, the default | biased | biased | with few streams: less bias than `score`, less noise than `dice` |
| `inner_surrogate="score"` | biased | biased | to repeat the original MAML |
| `first_order=True` | biased | biased | where the backward pass through inner steps costs too much |

All rows need ``gae_lambda=1``: below it, as at the default 0.95, the gradient itself is biased, unless the baseline is exact.
``python benchmarks/estimators.py`` enumerates the biases and the noise on an MDP of your size; `benchmarks/RESULTS.md` has
its default table, in which the noise of the second row grows with N.

Nothing here stops a gradient; recorded log-probabilities are data already (see `rollout`).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import cumulative_discount
from jaxmeta.estimators.returns import gae
from jaxmeta.estimators.streams import count, is_first, is_last, unless
from jaxmeta.recurrences import linear_recurrence
from jaxmeta.types import Params

Weights = Callable[[jax.Array, jax.Array], jax.Array]
"""``(log_ratio [T], first [T]) -> d [T]``: what each action adds to the trace."""


Surrogate = Callable[..., jax.Array]
"""``(log_prob, log_prob_mu, delta, discount, first, tau) -> []``, a value to be maximised; all ``[T]``, tau ``[]``."""


def score(log_ratio: jax.Array, first: jax.Array) -> jax.Array:
    """``d_t = lr_t``, ``[T]``: REINFORCE (Williams 1992), the inner surrogate of Finn et al. 2017.

    Its second derivative lacks the terms in which an action changes the distribution of what follows.
    """
    checks.shapes("T", log_ratio=log_ratio, first=first)
    return log_ratio


def lvc(log_ratio: jax.Array, first: jax.Array) -> jax.Array:
    """``d_t = ρ_t - 1``, ``[T]``: the low-variance curvature surrogate.

    Rothfuss et al. 2019, "ProMP: proximal meta-policy search", section 5 (here in TD errors instead
    of advantages).
    """
    checks.shapes("T", log_ratio=log_ratio, first=first)
    return jnp.expm1(log_ratio)


def taypo(log_ratio: jax.Array, first: jax.Array, *, order: int) -> jax.Array:
    """``d_t = x_t sum_{j<n} e_j(x_i: i < t)``, ``x = ρ - 1``, e_j elementary symmetric, ``[T]``.

    Taylor expansion of the importance-sampled objective to ``order`` n: Tang et al. 2020, "Taylor
    expansion policy optimization". Order 1 is `lvc`; order T is `dice`.
    """
    checks.at_least("order", order, 1)
    checks.shapes("T", log_ratio=log_ratio, first=first)
    x, keep = jnp.expm1(log_ratio), unless(first, log_ratio)
    added = x  # x_t e_{j}(x before t), at j = 0
    total = added
    for _ in range(1, order):
        e = linear_recurrence(added, keep)
        added = x * keep * jnp.concatenate([jnp.zeros_like(e[:1]), e[:-1]])
        total = total + added
    return total


def loaded_dice(
    log_ratio: jax.Array, first: jax.Array, *, lambda_: jax.Array | float = 1.0
) -> jax.Array:
    """``d_t = exp(u_t) - exp(λ u_{t-1})`` with ``u_t = λ u_{t-1} + lr_t``, ``[T]``.

    Farquhar, Whiteson & Foerster 2019, "Loaded DiCE", with their decay λ of earlier actions'
    log-ratios. λ = 1 is DiCE (Foerster et al. 2018), which with TD errors of any fixed value function
    is the doubly robust estimator (Jiang & Li 2016).
    """
    checks.shapes("T T T?", log_ratio=log_ratio, first=first, lambda_=lambda_)
    u = linear_recurrence(log_ratio, unless(first, log_ratio) * lambda_)
    # exp(λ u_{t-1}) (ρ_t - 1), not a difference of two exponentials that are nearly equal.
    return jnp.exp(u - log_ratio) * jnp.expm1(log_ratio)


def vtrace(
    log_ratio: jax.Array,
    first: jax.Array,
    *,
    rho_bar: float,
    c_bar: float,
    off_policy: bool = False,
) -> jax.Array:
    """``w_k + 1 = prod_{t<k} min(ρ_t, c̄) · min(ρ_k, ρ̄)``, as its increments ``[T]``.

    The truncations of Espeholt et al. 2018, "IMPALA". As a surrogate it is biased wherever they act.

    Raises:
        ValueError: ``rho_bar`` or ``c_bar`` is at most 1 and ``off_policy`` is not set: where ρ = 1 the
            minimum of two equal numbers has half the derivative.
    """
    checks.shapes("T", log_ratio=log_ratio, first=first)
    checks.field("off_policy", off_policy, bool)
    checks.between("rho_bar", rho_bar, 1e-12, math.inf)
    checks.between("c_bar", c_bar, 1e-12, math.inf)
    if not off_policy and not (rho_bar > 1 and c_bar > 1):
        raise ValueError(
            f"rho_bar={rho_bar} and c_bar={c_bar} must exceed 1: on-policy ρ is 1, and min(1, ρ) has half "
            "the derivative there; off_policy=True says that no ratio is"
        )
    keep = unless(first, log_ratio)
    log_c = jnp.minimum(log_ratio, math.log(c_bar))
    before = linear_recurrence(log_c, keep) - log_c
    w = jnp.exp(before + jnp.minimum(log_ratio, math.log(rho_bar)))
    previous = jnp.concatenate([jnp.ones_like(w[:1]), w[:-1]])
    return w - jnp.where(is_first(first), 1.0, jnp.where(first, 1.0, previous))


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
    _check_stream(log_prob, log_prob_mu, delta, discount, first, tau)
    d = weights(log_prob - log_prob_mu, first)
    # The sums over k and over t change places: what follows an action depends on recorded numbers alone, so no
    # derivative in the policy runs through a recurrence.
    goes_on = jnp.where(is_last(first), 0.0, unless(jnp.roll(first, -1), delta))
    to_come = linear_recurrence(
        cumulative_discount(discount, first) * delta, goes_on * tau, reverse=True
    )
    return jnp.sum(d * to_come)


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
    _check_stream(log_prob, log_prob_mu, delta, discount, first, tau)
    last = jnp.concatenate([first[1:], jnp.zeros_like(first[:1])])
    advantage = gae(delta, discount, last=last, lambda_=tau)
    g = cumulative_discount(discount, first)
    return jnp.sum(g * clipped_ratio(log_prob - log_prob_mu, advantage, epsilon))


def _check_stream(
    log_prob: jax.Array,
    log_prob_mu: jax.Array,
    delta: jax.Array,
    discount: jax.Array,
    first: jax.Array,
    tau: jax.Array | float,
) -> None:
    stream = dict(delta=delta, discount=discount, first=first)
    checks.shapes("T T T T T ?", log_prob=log_prob, log_prob_mu=log_prob_mu, **stream, tau=tau)


def clipped_ratio(
    log_ratio: jax.Array, advantage: jax.Array, epsilon: jax.Array | float
) -> jax.Array:
    """``min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)`` for each entry, the shape of both."""
    checks.shapes("... ... ...?", log_ratio=log_ratio, advantage=advantage, epsilon=epsilon)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def semi_gradient(value: Callable[[Params], jax.Array], params: Params, error: jax.Array) -> Params:
    """``sum_t e_t ∇v_t``, a tree like ``params``: the direction of a TD step (Sutton & Barto 2018, eq. 9.7).

    A TD step is written so, and never as the gradient of ``½ ([target] - v)²``: that is the same step,
    but *its* derivative, which a meta-gradient takes, lacks that the targets of the next step are
    predictions of the parameters too. Hand in live errors, nothing stopped.

    Args:
        value: ``params -> v``, ``[T]`` or any shape.
        params: Where the step starts.
        error: Targets less predictions, shaped like v.
    """
    v, pullback = jax.vjp(value, params)
    checks.shapes("...", **{"value(params)": v}, error=error)
    return pullback(error)[0]


def sampling_correction(log_prob: jax.Array, gain: jax.Array) -> jax.Array:
    """``sum_n gain_n sum_t log π(a_t|s_t)`` of one task's streams, ``[N, T], [N] -> []``, to be maximised.

    The worth of pre-update experience D: its distribution depends on the parameters too, and the
    derivative through the update on *fixed* D leaves that out. With ``gain_n`` = (what was earned after
    the update) - b_n, for any b_n that does not depend on stream n, the sum of the two derivatives is
    the gradient of ``E_D J(U(θ, D))`` without bias at every N (E-MAML: Stadie et al. 2018, "Some
    considerations on learning to explore via meta-reinforcement learning", eq. 5). It is a sum over
    streams. Many implementations use the mean by mistake, which makes the term N times too small.

    Valid only beside an update whose derivative does not carry that dependence already: inner
    surrogate `score`, never `dice` or `lvc`. Callers stop the gradient of ``gain``.
    """
    checks.shapes("NT N", log_prob=log_prob, gain=gain)
    return jnp.sum(gain * jnp.sum(log_prob, axis=-1))


def leave_one_out_mean(x: jax.Array, good: jax.Array | None = None) -> jax.Array:
    """Mean of the *other* entries, ``[N] -> [N]``; 0 where there are none: a baseline that biases nothing.

    Entries that are not ``good`` (bool ``[N]``; None is all) are no others.
    """
    good = jnp.ones(x.shape, bool) if good is None else good
    checks.shapes("N", x=x, good=good)
    counted = jnp.where(good, x, 0.0)
    return (jnp.sum(counted) - counted) / jnp.maximum(count(good, x) - good.astype(x.dtype), 1)


SURROGATES: dict[str, Surrogate] = {
    "score": partial(surrogate, weights=score),
    "lvc": partial(surrogate, weights=lvc),
    "taypo": partial(surrogate, weights=partial(taypo, order=2)),
    "loaded_dice": partial(surrogate, weights=partial(loaded_dice, lambda_=0.5)),
    "dice": partial(surrogate, weights=loaded_dice),
    "ppo_clip": ppo_clip,
}
"""Surrogates by the names that configurations use. Add your own under a new name."""
