"""The linear baseline: a value of observations and time that is fitted to each task's own returns."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import episode_step
from jaxmeta.estimators.returns import discounted_returns, td_errors
from jaxmeta.estimators.streams import unless
from jaxmeta.types import Trajectory


def linear_features(obs: jax.Array, step: jax.Array, horizon: int) -> jax.Array:
    """The features of the MAML line of work: ``[obs, obs², u, u², u³, 1]``, ``[T, 2·obs_size + 4]``.

    Args:
        obs: ``[T, *obs_shape]``.
        step: ``[T]``, steps since the episode started.
        horizon: The scale of time: ``u = 2·step/horizon - 1`` (Duan et al. 2016, "Benchmarking deep
            reinforcement learning", use step/100; centred, the normal equations hold in float32).
    """
    checks.shapes("T... T", obs=obs, step=step)
    checks.at_least("horizon", horizon, 1)
    flat = obs.reshape(obs.shape[0], -1)
    u = (2.0 * step / horizon - 1.0)[:, None]
    return jnp.concatenate([flat, flat**2, u, u**2, u**3, jnp.ones_like(u)], axis=1)


def linear_baseline(features: jax.Array, targets: jax.Array, ridge: float = 1e-4) -> jax.Array:
    """Least-squares predictions of ``targets`` where each stream is predicted from the *others*, ``[N, T]``.

    A baseline fitted to the very returns that it is subtracted from depends on the actions and biases
    the policy gradient; leaving a stream out of its own fit keeps the baseline independent of it and
    the gradient unbiased. Costs N solves of an F × F system. With N = 1 there is nothing to fit and
    the baseline is 0.

    Args:
        features: ``[N, T, F]``.
        targets: ``[N, T]``, the returns to come.
        ridge: Regularisation, relative to the mean square of each feature: predictions are the same
            whatever units features are in, and targets in another unit give predictions in that unit.
    """
    checks.shapes("NTF NT ?", features=features, targets=targets, ridge=ridge)
    gram = jnp.einsum("ntf,ntg->nfg", features, features)
    moment = jnp.einsum("ntf,nt->nf", features, targets)
    # Sums over the others, not differences to the sum over all: what a large stream rounds away is lost.
    others = 1.0 - jnp.eye(features.shape[0], dtype=gram.dtype)
    gram = jnp.einsum("mn,nfg->mfg", others, gram)
    moment = jnp.einsum("mn,nf->mf", others, moment)
    # A feature that is zero throughout (or N = 1) gets weight 0.
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    penalty = jax.vmap(jnp.diag)(jnp.where(diagonal > 0, ridge * diagonal, 1.0))
    weights = jax.vmap(_solve_positive_definite)(gram + penalty, moment)
    return jnp.einsum("ntf,nf->nt", features, weights)


def _solve_positive_definite(a: jax.Array, b: jax.Array) -> jax.Array:
    """``x`` with ``a x = b`` for a small positive definite ``a [F, F]``, ``[F]``: Gauss-Jordan elimination.

    Not ``jnp.linalg.solve``: under ``vmap`` its CPU kernel (jaxlib 0.10) waits, inside a worker of
    XLA's thread pool, for other workers of that pool, and as many such calls as the machine has cores
    wait for each other for ever. On a GPU a batch of tiny systems is quicker in plain arithmetic too.
    """
    # Positive definite systems need no pivoting; a unit diagonal keeps float32 well conditioned.
    scale = jax.lax.rsqrt(jnp.diagonal(a))
    rows = jnp.concatenate([a * scale[:, None] * scale[None, :], (b * scale)[:, None]], axis=1)

    def eliminate(i: jax.Array, rows: jax.Array) -> jax.Array:
        row = rows[i] / rows[i, i]
        is_pivot = (jnp.arange(b.shape[0]) == i)[:, None]
        return jnp.where(is_pivot, row[None, :], rows - rows[:, i][:, None] * row[None, :])

    return jax.lax.fori_loop(0, b.shape[0], eliminate, rows)[:, -1] * scale


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
    (`baselines.linear_baseline`), so the policy gradient stays unbiased (at λ = 1; below, any value
    function that is not exact biases it). It may be of observations of any size: they are centred where the
    streams begin, before an action was taken, and scaled, which changes no prediction.

    Args:
        data: ``[N, T]``.
        discount: ``[N, T]``, γ times ``data.discount``.
        horizon: An episode's time limit, the scale of the time features.
        counted: bool ``[N, T]``, the steps that the baseline is fitted to and predicts; None is all.
            Where only some steps are learned from, the others must not speak through the baseline.
        baseline: The inputs of the baseline, as `sees_observations` says.
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
    returns = jax.vmap(discounted_returns)(data.reward, discount, v_next=zeros, last=data.last)
    features = jax.vmap(lambda obs, first: linear_features(obs, episode_step(first), horizon))(
        obs, data.timestep.first
    )
    v = linear_baseline(
        jnp.where(counted[..., None], features, 0.0), jnp.where(counted, returns, 0.0)
    )
    v_next = jnp.concatenate([v[:, 1:], zeros[:, :1]], axis=1) * unless(data.last, v)
    return td_errors(data.reward, discount, v=v, v_next=v_next)


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
