"""From rewards to returns and advantages, on one stream ``[T]``.

Every quantity here is one linear recurrence. Discounts, values and the values of the successors come as
vectors, which makes termination and truncation exact without special cases:

* ``discount``: γ times the trajectory's ``discount``, so 0 where the task terminated;
* ``v_next``: the value of the true successor, also where the episode was cut by a time limit;
* ``last``: where an episode ended; recursions do not cross it.

Nothing here stops a gradient: γ, λ, rewards and values can all be meta-learned through it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks import linear_baseline, linear_features
from jaxmeta.types import Trajectory


def linear_recurrence(
    a: jax.Array, b: jax.Array, *, reverse: bool = False, parallel: bool | None = None
) -> jax.Array:
    """``y_t = a_t + b_t y_{t-1}`` with ``y_{-1} = 0`` (``y_{t+1}``, ``y_T = 0`` in reverse), ``[T]``.

    ``parallel`` runs in O(log T) steps by an associative scan (Blelloch 1990, "Prefix sums"); else step by
    step: on a CPU a MAML update is no slower for it, and compiles in two thirds of the time. None is what
    fits the device.
    """
    checks.shapes("T...", a=a, b=b)
    checks.field("reverse", reverse, bool)
    checks.field("parallel", parallel, bool | None)
    if jax.default_backend() != "cpu" if parallel is None else parallel:

        def compose(earlier: tuple, later: tuple) -> tuple:
            (a0, b0), (a1, b1) = earlier, later
            return a1 + b1 * a0, b1 * b0

        return jax.lax.associative_scan(compose, (a, b), reverse=reverse)[0]

    def step(y: jax.Array, at: tuple) -> tuple:
        y = at[0] + at[1] * y
        return y, y

    zero = jnp.zeros_like(a, shape=a.shape[1:])
    return jax.lax.scan(step, zero, (a, b), reverse=reverse, unroll=4)[1]


def unless(flag: jax.Array, like: jax.Array) -> jax.Array:
    """``1 - flag``, of any shape, in the dtype of ``like``: 0 where a recurrence must not go on."""
    return 1.0 - jnp.asarray(flag, jnp.result_type(like))


def count(flags: jax.Array, like: jax.Array, **axes: Any) -> jax.Array:
    """How many ``flags`` are true, at least 1, in the dtype of ``like``: what their mean is divided by, ``[]``.

    ``axes`` are those of ``jnp.sum``.
    """
    return jnp.maximum(jnp.sum(flags, **axes), 1).astype(like.dtype)


def td_errors(reward: jax.Array, discount: jax.Array, v: jax.Array, v_next: jax.Array) -> jax.Array:
    """``δ_t = r_t + discount_t v_next_t - v_t``, all ``[T]``, or of any one shape; ``discount`` also ``[]``."""
    checks.shapes("... ...? ... ...", reward=reward, discount=discount, v=v, v_next=v_next)
    return reward + discount * v_next - v


def gae(
    delta: jax.Array, discount: jax.Array, last: jax.Array, lambda_: jax.Array | float
) -> jax.Array:
    """Generalised advantages ``A_t = δ_t + discount_t λ (1 - last_t) A_{t+1}``, all ``[T]``.

    Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", eq. 16. With λ = 1 and v = 0 it is the return.
    """
    checks.shapes("T T T T?", delta=delta, discount=discount, last=last, lambda_=lambda_)
    return linear_recurrence(delta, discount * lambda_ * unless(last, delta), reverse=True)


def discounted_returns(
    reward: jax.Array, discount: jax.Array, last: jax.Array, v_next: jax.Array
) -> jax.Array:
    """``G_t = r_t + discount_t G_{t+1}``, with ``v_next`` at an episode's and at the stream's end, ``[T]``."""
    checks.shapes("T", reward=reward, discount=discount, last=last, v_next=v_next)
    cut = jnp.asarray(last, reward.dtype).at[-1].set(1.0)
    return linear_recurrence(reward + discount * cut * v_next, discount * (1.0 - cut), reverse=True)


def importance_returns(
    reward: jax.Array, discount: jax.Array, last: jax.Array, v_next: jax.Array, rho: jax.Array
) -> jax.Array:
    """``G_t = ρ_t (r_t + discount_t G_{t+1})``: returns by per-decision importance sampling, ``[T]``.

    Precup, Sutton & Singh 2000, "Eligibility traces for off-policy policy evaluation", section 4; with
    ``v_next`` at an episode's and at the stream's end as in `discounted_returns`. ``E[G_t | s_t]`` is the
    value of the policy that the ratios are of, if ``v_next`` is its value there.
    """
    checks.shapes("T", reward=reward, discount=discount, last=last, v_next=v_next, rho=rho)
    cut = jnp.asarray(last, reward.dtype).at[-1].set(1.0)
    now = rho * (reward + discount * cut * v_next)
    return linear_recurrence(now, rho * discount * (1.0 - cut), reverse=True)


def weighted_importance_returns(
    reward: jax.Array,
    discount: jax.Array,
    last: jax.Array,
    v_next: jax.Array,
    rho: jax.Array,
    good: jax.Array | None = None,
) -> jax.Array:
    """`importance_returns` with each weight divided by its mean over streams, all ``[N, T]``.

    The weight of the reward at k in the return from t is ``w_tk = ρ_t ... ρ_k``, whose mean is 1 in
    expectation; dividing by the mean that came out bounds it by N (Precup et al. 2000, weighted
    per-decision estimator). Biased by O(1/N), consistent; one stream alone returns what it saw. The
    streams' episodes begin and end together, or as if: w_tk is of those streams whose episode lasts from t to k,
    and of those that are ``good`` (bool ``[N]``; None is all). What comes back for the others means nothing.
    """
    arrays = dict(reward=reward, discount=discount, last=last, v_next=v_next, rho=rho)
    good = jnp.ones(rho.shape[:1], bool) if good is None else good
    checks.shapes("NT NT NT NT NT N", **arrays, good=good)
    cut = jnp.asarray(last, reward.dtype).at[:, -1].set(1.0)
    step = jnp.arange(reward.shape[1])

    def products(x: jax.Array, begin: jax.Array) -> jax.Array:
        """``prod_{begin_t <= i <= k} x_i``, ``[T, T]``; no quotient of products from 0, which underflow."""
        return jnp.cumprod(jnp.where(begin[:, None] <= step[None, :], x[None, :], 1.0), axis=1)

    def terms(discount: jax.Array, cut: jax.Array, rho: jax.Array) -> tuple:
        """Of one stream: weights, discounts and whether k is in what follows t, ``[T, T]`` each."""
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
    v: jax.Array,
    v_next: jax.Array,
    rho: jax.Array,
    last: jax.Array,
    *,
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
    delta = td_errors(reward, discount, v, v_next)
    c = jnp.minimum(rho, c_bar)
    return v + gae(jnp.minimum(rho, rho_bar) * delta, discount * c, last, lambda_)


def action_value_targets(
    reward: jax.Array,
    discount: jax.Array,
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

    Whatever c does not exceed ρ, the fixed point is Q^π.
    """
    checks.shapes("T", reward=reward, discount=discount, q=q, v_next=v_next, c=c, last=last)
    delta = td_errors(reward, discount, q, v_next)
    c_next = jnp.append(c[1:], jnp.zeros_like(c[:1]))
    return q + gae(delta, discount * c_next, last, 1.0)


def cumulative_discount(discount: jax.Array, first: jax.Array) -> jax.Array:
    """``g_t = prod_{i<t} discount_i``, restarted at 1 where an episode starts, ``[T]``.

    The factor γ^t of the policy gradient of a discounted objective.
    """
    checks.shapes("T", discount=discount, first=first)
    start = jnp.asarray(first, discount.dtype).at[0].set(1.0)
    previous = jnp.concatenate([jnp.ones_like(discount[:1]), discount[:-1]])
    return linear_recurrence(start, (1.0 - start) * previous)


def episode_step(first: jax.Array) -> jax.Array:
    """Steps since the episode started (since the stream's first step where that is later), ``[T]``."""
    checks.shapes("T", first=first)
    ones = jnp.ones(first.shape)
    return linear_recurrence(ones, unless(first, ones)) - 1.0


def first_episode_return(reward: jax.Array, last: jax.Array) -> jax.Array:
    """Undiscounted return of the stream's first episode, ``[T] -> []``.

    What evaluation reports: averaging over however many episodes fit into T steps would favour the
    short ones.
    """
    checks.shapes("T", reward=reward, last=last)
    return jnp.sum(jnp.where(in_first_episode(last), reward, 0.0))


def in_first_episode(last: jax.Array) -> jax.Array:
    """Which steps of a stream belong to its first episode, bool ``[T]``.

    Counting that one alone keeps a stream one draw of an episode: what begins after it begins the
    sooner the earlier it ended, so a sum over all of them is the rate of reward and not the return.
    """
    return episode_index(last) == 0


def episode_index(last: jax.Array) -> jax.Array:
    """Which episode of its stream a step belongs to, from 0, int32 ``[T]``."""
    checks.shapes("T", last=last)
    ended = last.astype(jnp.int32)
    return jnp.cumsum(ended) - ended


def baseline_td_errors(
    data: Trajectory,
    discount: jax.Array,
    horizon: int,
    counted: jax.Array | None = None,
    *,
    baseline: Literal["auto", "observation", "time"] = "auto",
) -> jax.Array:
    """TD errors of one task's trajectories against the linear feature baseline, ``[N, T]``.

    The objective is that of episodes that end with their time limit: returns stop where an episode or
    the stream was cut, and so do the values. The baseline of a stream is fitted to the others
    (`networks.linear_baseline`), so the policy gradient stays unbiased (at λ = 1; below, any value
    function that is not exact biases it). It may be of observations of any size: they are centred where the
    streams begin, before an action was taken, and scaled, which changes no prediction.

    Args:
        data: ``[N, T]``.
        discount: ``[N, T]``, γ times ``data.discount``.
        horizon: An episode's time limit, the scale of the time features.
        counted: bool ``[N, T]``, the steps that the baseline is fitted to and predicts; None is all.
            Where only some steps are learned from, the others must not speak through the baseline.
        baseline: What it is a function of, as `sees_observations` says.
    """
    told = {} if counted is None else dict(counted=counted)
    parts = {
        "data.reward": data.reward,
        "data.last": data.last,
        "data.timestep.first": data.timestep.first,
    }
    checks.shapes("NT", **parts, discount=discount, **told)
    checks.at_least("horizon", horizon, 1)
    if counted is None:
        counted = jnp.ones(data.reward.shape, bool)
    obs = data.timestep.obs
    observed = sees_observations(obs.shape[2:], baseline)
    obs = _standardised(obs, counted) if observed else jnp.zeros((*counted.shape, 0))
    zeros = jnp.zeros_like(data.reward)
    returns = jax.vmap(discounted_returns)(data.reward, discount, data.last, zeros)
    features = jax.vmap(lambda obs, first: linear_features(obs, episode_step(first), horizon))(
        obs, data.timestep.first
    )
    v = linear_baseline(
        jnp.where(counted[..., None], features, 0.0), jnp.where(counted, returns, 0.0)
    )
    v_next = jnp.concatenate([v[:, 1:], zeros[:, :1]], axis=1) * unless(data.last, v)
    return td_errors(data.reward, discount, v, v_next)


BASELINES = ("auto", "observation", "time")
AUTO_FEATURES, MAX_FEATURES = 500, 4000
"""Features of the linear baseline up to which `auto` takes observations, and the most that there may be. F of
them cost N matrices of F × F numbers and N F³ operations a task: at N = 20, T = 100 on one core 1 s for 400
features and 12 s for 800, beside 0.02 s for the time alone."""


def sees_observations(obs_shape: Sequence[int], baseline: str) -> bool:
    """Whether the linear ``baseline`` is a function of observations and time, or of time alone.

    ``"observation"`` and ``"time"`` say it; ``"auto"`` takes observations that make at most `AUTO_FEATURES`.
    Raises ValueError where ``"observation"`` would make more than `MAX_FEATURES`.
    """
    checks.choice("baseline", baseline, BASELINES)
    dtype = jnp.result_type(float)
    one, obs = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1,), (1, *obs_shape)))
    features = jax.eval_shape(partial(linear_features, horizon=1), obs, one)
    num_features = features.shape[-1]
    if baseline == "observation" and num_features > MAX_FEATURES:
        raise ValueError(
            f"baseline='observation' makes {num_features} features of observations of shape "
            f"{tuple(obs_shape)}, and a fit of at most {MAX_FEATURES} is feasible; use baseline='auto' or "
            "'time'"
        )
    return baseline == "observation" or (baseline == "auto" and num_features <= AUTO_FEATURES)


def _standardised(obs: jax.Array, counted: jax.Array) -> jax.Array:
    """Observations ``[N, T, ...]`` as ``[N, T, O]``: around the mean of the streams' first ones, and at most 1
    in size at the ``counted`` steps.

    Neither lets a stream's actions into its own baseline: the first observations come before them, and a
    least-squares fit whose ridge is relative to each feature's size does not see the scale.
    """
    flat = obs.reshape(*counted.shape, -1)
    # From some first observation, for a mean of large numbers rounds.
    stream = jnp.argmax(counted[:, 0])
    x = flat - flat[stream, 0][None, None, :]
    x = x - jnp.mean(x[:, 0], axis=0, where=counted[:, :1], keepdims=True)[:, None, :]
    size = jnp.max(jnp.abs(x), axis=(0, 1), where=counted[..., None], initial=0.0, keepdims=True)
    return x / jnp.where(size > 0, size, 1.0)


def advantage_scale(
    delta: jax.Array,
    discount: jax.Array,
    last: jax.Array,
    lambda_: jax.Array | float,
    counted: jax.Array | None = None,
) -> jax.Array:
    """Root mean square of the advantages of ``[N, T]`` TD errors, ``[]``, never zero.

    Dividing by it keeps the direction of this batch's gradient; subtracting the batch's mean would
    bend it. Where all are 0 it is 1.
    """
    told = {} if counted is None else dict(counted=counted)
    checks.shapes("NT", delta=delta, discount=discount, last=last, **told)
    advantages = jax.vmap(gae, in_axes=(0, 0, 0, None))(delta, discount, last, lambda_)
    square = jnp.mean(advantages**2, where=counted)
    return jnp.sqrt(jnp.where(square > 0, square, 1.0))


def in_units(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``x / scale``, of any shape; 0 where the scale ``[]`` is 0, not known yet: then nothing can be said in
    units."""
    checks.shapes("... ?", x=x, scale=scale)
    known = scale > 0
    return jnp.where(known, x / jnp.where(known, scale, 1.0), 0.0)


def running(mean: jax.Array, batch: jax.Array, known: jax.Array) -> jax.Array:
    """A running mean, of any shape, after another batch's: the first batch's, then a tenth of each batch's.

    ``known`` (bool ``[]``) says whether there was a batch before.
    """
    checks.shapes("... ... ?", mean=mean, batch=batch, known=known)
    return jnp.where(known, mean + 0.1 * (batch - mean), batch)


def running_reward_scale(scale: jax.Array, reward: jax.Array, counted: jax.Array) -> jax.Array:
    """The `running` mean of batches' largest rewards, in magnitude, after another batch, ``[]``.

    0 is a scale that is not known yet. Not the root mean square, which grows as rare rewards become frequent: a network that
    sees rewards in units of it learns from inputs that shrink as it learns.

    Args:
        scale: ``[]``, before.
        reward: Of any shape; finite where ``counted``.
        counted: Of the same shape, bool.
    """
    checks.shapes("? ... ...", scale=scale, reward=reward, counted=counted)
    largest = jnp.max(jnp.abs(reward), where=jnp.asarray(counted, bool), initial=0.0)
    return jnp.where(largest > 0, running(scale, largest, scale > 0), scale)


def finite_streams(data: Trajectory) -> jax.Array:
    """Which streams of ``data [N, T]`` hold finite numbers alone, bool ``[N]``; memories do not count."""
    num_streams = data.reward.shape[0]
    finite = [
        jnp.all(jnp.isfinite(x.reshape(num_streams, -1)), axis=1)
        for x in jax.tree.leaves(data._replace(memory=()))
    ]
    return jnp.stack(finite).all(axis=0)


def without_broken_streams(data: Trajectory) -> tuple[Trajectory, jax.Array]:
    """``data [N, T]`` and which of its streams to count, bool ``[N]``: `finite_streams`.

    A broken stream is left out whole: what an environment did before a number that is not finite is no
    fair draw of what it does. In its place is a copy of the first good one (zeros without any), because a NaN
    that is only masked comes back through the derivative. The copy keeps numbers finite and stands for
    nothing: every sum, mean, scale or fit over streams takes the mask too.
    """
    good = finite_streams(data)
    first, some = jnp.argmax(good), jnp.any(good)

    def mended(x: jax.Array) -> jax.Array:
        mask = good.reshape(-1, *[1] * (x.ndim - 1))
        spare = jnp.where(some, x[first], jnp.zeros_like(x[0]))
        return jnp.where(mask, x, spare[None])

    return jax.tree.map(mended, data), good


def mean_over_streams(x: jax.Array, good: jax.Array) -> jax.Array:
    """Mean of those rows of ``x [N, ...]`` that are ``good`` (bool ``[N]``), over all axes, ``[]``; NaN
    without any. Both may have more axes in front."""
    where = good.reshape(*good.shape, *[1] * (x.ndim - good.ndim))
    return jnp.mean(x, where=where)
