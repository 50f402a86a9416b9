"""Policies and values: pure functions over nested dicts of arrays.

A policy is four functions, so that feed-forward and recurrent ones are used alike. The only file that
imports ``flax.linen``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import boxes, checks
from jaxmeta.distributions import Categorical, DiagGaussian, Distribution
from jaxmeta.types import Params, TimeStep


class Policy(NamedTuple):
    """How to act on what one stream saw."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    memory: Callable[[], Any]
    """``() -> memory`` at the start of a stream."""
    step: Callable[[Params, Any, TimeStep], tuple[Distribution, Any]]
    """``(params, memory, timestep) -> (distribution, memory)``, one step."""
    unroll: Callable[[Params, Any, TimeStep], Distribution]
    """``(params, memory, timesteps [T]) -> distributions [T]``: the same for a whole stream."""


class Value(NamedTuple):
    """An estimate of the return to come from an observation."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    apply: Callable[[Params, jax.Array], jax.Array]
    """``(params, obs [*batch, *obs_shape]) -> v [*batch]``."""


@checks.arguments
def feed_forward(
    init: Callable[[jax.Array], Params], apply: Callable[[Params, jax.Array], Distribution]
) -> Policy:
    """A policy without memory from ``apply: (params, obs [*obs_shape]) -> distribution``."""

    def unroll(params: Params, memory: Any, timesteps: TimeStep) -> Distribution:
        return jax.vmap(apply, in_axes=(None, 0))(params, timesteps.obs)

    return Policy(
        init=init,
        memory=lambda: (),
        step=lambda params, memory, timestep: (apply(params, timestep.obs), memory),
        unroll=unroll,
    )


@checks.arguments
def softmax_linear(
    features: Callable[[jax.Array], jax.Array], *, num_features: int, action_space: spaces.Space
) -> Policy:
    """``π(a|s) ∝ exp(φ(s, a)·θ)`` for given features; parameters are ``{"theta": [F]}``, zero at first.

    Args:
        features: ``obs [*obs_shape] -> φ(s, ·) [A, F]``.
        num_features: F.
        action_space: A `Discrete` space of A actions.
    """
    num_actions = _num_actions("softmax_linear", action_space)
    checks.at_least("num_features", num_features, 1)

    def apply(params: Params, obs: jax.Array) -> Categorical:
        phi = features(obs)
        if phi.shape != (num_actions, num_features):
            raise ValueError(
                f"features(obs) has shape {phi.shape}; it must be [num_actions, num_features] = "
                f"[{num_actions}, {num_features}]"
            )
        return Categorical(phi @ params["theta"])

    return feed_forward(lambda key: {"theta": jnp.zeros(num_features)}, apply)


def action_features(obs_shape: Sequence[int], num_actions: int) -> Callable[[jax.Array], jax.Array]:
    """``φ(s, a)``: the observation and a constant in the block of action a, zeros in the others.

    The features that make `softmax_linear` a multinomial logistic regression;
    ``F = num_actions * (obs_size + 1)``.
    """
    num_actions = checks.at_least("num_actions", num_actions, 1)
    size = _obs_size(obs_shape) + 1

    def features(obs: jax.Array) -> jax.Array:
        row = jnp.concatenate([obs.reshape(-1), jnp.ones(1, obs.dtype)])
        blocks = jnp.eye(num_actions, dtype=obs.dtype)[:, :, None] * row[None, None, :]
        return blocks.reshape(num_actions, num_actions * size)

    return features


class _Network(NamedTuple):
    init: Callable[[jax.Array], Params]  # (key) -> {"body": ..., "head": ...}
    apply: Callable[[Params, jax.Array], jax.Array]  # (params, x [..., inputs]) -> [..., outputs]


class _Body(nn.Module):
    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = jnp.tanh(_dense(size, 1.0)(x))
        return x


def _dense(size: int, scale: float) -> nn.Dense:
    # Glorot & Bengio 2010, as in MAML's code. Orthogonal matrices would take a decomposition by
    # LAPACK, which this library stays clear of (see `_solve_positive_definite`).
    initial = nn.initializers.variance_scaling(scale**2, "fan_avg", "normal")
    return nn.Dense(size, kernel_init=initial, param_dtype=jnp.result_type(float))


def _mlp(
    num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int, output_scale: float
) -> _Network:
    """A tanh network whose last layer, the head, has parameters of its own: some methods adapt it alone."""
    hidden_sizes = checks.each_at_least("hidden_sizes", hidden_sizes, 1)
    body, head = _Body(hidden_sizes), _dense(num_outputs, output_scale)

    def init(key: jax.Array) -> Params:
        body_key, head_key = jax.random.split(key)
        hidden, body_params = body.init_with_output(body_key, jnp.zeros(num_inputs))
        return {"body": body_params, "head": head.init(head_key, hidden)}

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return head.apply(params["head"], body.apply(params["body"], x))  # type: ignore[return-value]

    return _Network(init, apply)


class Head(NamedTuple):
    """A policy of the features it is given, whatever they are."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``, ``{"body": ..., "head": ...}``."""
    apply: Callable[[Params, jax.Array], Distribution]
    """``(params, x [*batch, F]) -> distributions [*batch]``."""


@checks.arguments
def action_head(
    num_features: int,
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (),
) -> Head:
    """A tanh network to the action distribution that fits the space: `Categorical` or `DiagGaussian`."""
    num_features = checks.at_least("num_features", num_features, 1)
    if _is_discrete(action_space):
        return _categorical_head(num_features, action_space, hidden_sizes)
    return _gaussian_head("action_head", num_features, action_space, hidden_sizes, 1.0)


def _categorical_head(
    num_features: int, action_space: spaces.Discrete, hidden_sizes: Sequence[int]
) -> Head:
    mlp = _mlp(num_features, hidden_sizes, action_space.n, 0.01)
    return Head(mlp.init, lambda params, x: Categorical(mlp.apply(params, x)))


def _gaussian_head(
    user: str,
    num_features: int,
    action_space: spaces.Space,
    hidden_sizes: Sequence[int],
    initial_std: float,
) -> Head:
    if _is_discrete(action_space):
        raise ValueError(
            f"{user} needs a continuous action space (Box), not {action_space!r}; "
            "use categorical_mlp or softmax_linear"
        )
    initial_std = checks.between("initial_std", initial_std, 1e-12, 1e6)
    shape = tuple(action_space.shape)
    if len(shape) != 1:
        raise ValueError(
            f"{user} needs actions of one axis, not of shape {shape}; flatten the action space"
        )
    nominal = boxes.scaled("action_space", action_space)
    centre, scale = nominal.middle, nominal.half_width
    mlp = _mlp(num_features, hidden_sizes, math.prod(shape), 0.01)

    def init(key: jax.Array) -> Params:
        params = mlp.init(key)
        log_std = jnp.full(shape, math.log(initial_std), float)
        return {"body": params["body"], "head": {"mean": params["head"], "log_std": log_std}}

    def apply(params: Params, x: jax.Array) -> DiagGaussian:
        mean = mlp.apply({"body": params["body"], "head": params["head"]["mean"]}, x)
        log_std = params["head"]["log_std"] + jnp.asarray(np.log(scale), mean.dtype)
        at, width = (
            jnp.broadcast_to(jnp.asarray(x, mean.dtype), mean.shape) for x in (centre, scale)
        )
        return DiagGaussian(at + width * mean, jnp.broadcast_to(log_std, mean.shape))

    return Head(init, apply)


@checks.arguments
def categorical_mlp(
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (64, 64),
    context_size: int = 0,
) -> Policy:
    """A tanh network to the logits of a `Discrete` action space; nearly uniform at first.

    Parameters are ``{"body": ..., "head": ...}`` and, with ``context_size`` C > 0, ``"context" [C]``:
    inputs beside the observation, zero at first (Zintgraf et al. 2019, CAVIA).
    """
    _num_actions("categorical_mlp", action_space)
    context_size = checks.at_least("context_size", context_size, 0)
    head = _categorical_head(_obs_size(obs_shape) + context_size, action_space, hidden_sizes)
    return _with_context(head, context_size)


@checks.arguments
def gaussian_mlp(
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (64, 64),
    initial_std: float = 1.0,
    context_size: int = 0,
) -> Policy:
    """A tanh network to the mean of a diagonal Gaussian over a `Box` action space.

    The log standard deviation is a parameter that does not depend on the observation. Mean and standard deviation are
    in units of the half width of the space's nominal range (see `boxes`), and a new policy is centred in that range, so
    ``initial_std`` means the same for torques and for metres. The policy does not clip its draws: the rollout clips
    the action for the environment and records it as it was drawn, since a clipped action has another
    log-probability. Parameters as in `categorical_mlp`; the head holds ``"mean"`` and ``"log_std"``.
    """
    context_size = checks.at_least("context_size", context_size, 0)
    num_features = _obs_size(obs_shape) + context_size
    head = _gaussian_head("gaussian_mlp", num_features, action_space, hidden_sizes, initial_std)
    return _with_context(head, context_size)


def _with_context(head: Head, context_size: int) -> Policy:
    """``head`` on the observation and a context of its parameters."""
    return feed_forward(
        lambda key: head.init(key) | _context(context_size),
        lambda params, obs: head.apply(params, _inputs(params, obs)),
    )


def _context(size: int) -> Params:
    return {"context": jnp.zeros(size)} if size else {}


def _inputs(params: Params, obs: jax.Array) -> jax.Array:
    flat = obs.reshape(-1)
    return jnp.concatenate([flat, params["context"]]) if "context" in params else flat


@checks.arguments
def default_policy(
    kind: str,
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int],
    context_size: int = 0,
    features: Callable[[jax.Array], jax.Array] | None = None,
    initial_std: float = 1.0,
) -> Policy:
    """The policy that a configuration names: ``"mlp"``, ``"gaussian"``, ``"categorical"`` or ``"softmax_linear"``.

    ``"mlp"`` is the one of the next two that fits the action space. The softmax-linear policy is one of ``features``,
    ``obs -> φ(s, ·) [A, F]``; None is `action_features`. Raises ValueError where the policy does not fit the space, or
    is given an ``initial_std`` and has none.
    """
    checks.choice("policy", kind, POLICIES)
    checks.between("initial_std", initial_std, 1e-12, 1e6)
    is_discrete = _is_discrete(action_space)
    if kind == "mlp":
        kind = "categorical" if is_discrete else "gaussian"
    if kind != "gaussian" and initial_std != 1:
        raise ValueError(f"initial_std={initial_std} must be 1: only a Gaussian policy has one")
    if kind == "categorical":
        return categorical_mlp(obs_shape, action_space, hidden_sizes, context_size)
    if kind == "gaussian":
        return gaussian_mlp(obs_shape, action_space, hidden_sizes, initial_std, context_size)
    obs_shape = checks.each_at_least("obs_shape", obs_shape, 0)
    if context_size != 0:
        raise ValueError(f"context_size={context_size} must be 0: softmax_linear takes no context")
    if features is None:
        features = action_features(obs_shape, _num_actions(kind, action_space))
    phi = jax.eval_shape(features, jnp.zeros(obs_shape))
    return softmax_linear(features, num_features=phi.shape[-1], action_space=action_space)


POLICIES = ("mlp", "categorical", "gaussian", "softmax_linear")


def value_mlp(
    obs_shape: Sequence[int],
    hidden_sizes: Sequence[int] = (64, 64),
    num_outputs: int | None = None,
) -> Value:
    """A tanh network to a state's value, or to ``[num_outputs]`` predictions."""
    size = 1 if num_outputs is None else num_outputs
    size = checks.at_least("num_outputs", size, 1)
    mlp = _mlp(_obs_size(obs_shape), hidden_sizes, size, 1.0)
    rank = len(obs_shape)

    def apply(params: Params, obs: jax.Array) -> jax.Array:
        if obs.shape[obs.ndim - rank :] != tuple(obs_shape):
            raise ValueError(f"obs has shape {obs.shape}; its last axes must be {tuple(obs_shape)}")
        batch = obs.shape[: obs.ndim - rank]
        outputs = mlp.apply(params, obs.reshape(*batch, -1))
        return outputs[..., 0] if num_outputs is None else outputs

    return Value(mlp.init, apply)


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
        return (rows - rows[:, i][:, None] * row[None, :]).at[i].set(row)

    return jax.lax.fori_loop(0, b.shape[0], eliminate, rows, unroll=8)[:, -1] * scale


def _num_actions(user: str, action_space: spaces.Space) -> int:
    if not _is_discrete(action_space):
        raise ValueError(
            f"{user} needs a discrete action space, not {action_space!r}; use gaussian_mlp"
        )
    return action_space.n


def _is_discrete(action_space: spaces.Space) -> TypeGuard[spaces.Discrete]:
    """Whether actions are discrete; raises ValueError unless they are that or in a Box, and there are some."""
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise ValueError(f"action_space={action_space!r} must be Discrete or Box")
    if isinstance(action_space, spaces.Discrete) and action_space.n < 1:
        raise ValueError(f"action_space={action_space!r} must have at least one action")
    return isinstance(action_space, spaces.Discrete)


def _obs_size(obs_shape: Sequence[int]) -> int:
    """The numbers of an observation; raises ValueError where there are none."""
    size = math.prod(checks.each_at_least("obs_shape", obs_shape, 0))
    if size == 0:
        raise ValueError(f"obs_shape={tuple(obs_shape)} must hold at least one number to see")
    return size
