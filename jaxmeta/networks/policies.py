"""Policies: pure functions over nested dicts of arrays.

A policy is four functions, so feed-forward and recurrent policies have one interface.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.distributions import Categorical, DiagGaussian, Distribution
from jaxmeta.networks.mlp import mlp, obs_size
from jaxmeta.tasks import boxes
from jaxmeta.types import Learner, Params, TimeStep, Trajectory


class Policy(NamedTuple):
    """A policy for one stream of experience."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    memory: Callable[[], Any]
    """``() -> memory`` at the start of a stream."""
    step: Callable[[Params, Any, TimeStep], tuple[Distribution, Any]]
    """``(params, memory, timestep) -> (distribution, memory)``, one step."""
    unroll: Callable[[Params, Any, TimeStep], Distribution]
    """``(params, memory, timesteps [T]) -> distributions [T]``: the same for a whole stream."""


Act = Callable[[jax.Array, Any, Any, Any, TimeStep], tuple[jax.Array, jax.Array, Any]]
"""The type of `Learner.act`."""


def acting(
    step: Callable[[Any, Any, TimeStep], tuple[Distribution, Any]],
    params: Callable[[Any, Any], Any],
) -> Act:
    """`Learner.act` that draws from a policy.

    Args:
        step: `Policy.step`, or what does the same.
        params: ``(meta, agent) -> the parameters that step is given``.
    """

    def act(
        key: jax.Array, meta: Any, agent: Any, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        distribution, memory = step(params(meta, agent), memory, timestep)
        action = distribution.sample(key)
        return action, distribution.log_prob(action), memory

    return act


def policy_learner(
    policy: Policy,
    *,
    init: Callable[[jax.Array, Any], Any],
    params: Callable[[Any, Any], Params],
    update: Callable[[jax.Array, Any, Any, Trajectory], Any],
    reads: type,
) -> Learner:
    """The learner that acts by ``policy``.

    Args:
        policy: The policy, with its memory.
        init: `Learner.init`.
        params: ``(meta, agent) -> the policy's parameters``.
        update: `Learner.update`.
        reads: The type of the learner's ``meta``; another type is refused.
    """
    learner = Learner(init, lambda meta: policy.memory(), acting(policy.step, params), update)
    return checks.reading(learner, reads)


def action_distributions(policy: Policy, params: Params, data: Trajectory) -> Distribution:
    """The policy's distributions of actions where ``data [N, T]`` was recorded, ``[N, T]``."""
    return jax.vmap(policy.unroll, in_axes=(None, 0, 0))(params, data.memory, data.timestep)


def log_probs(policy: Policy, params: Params, data: Trajectory) -> jax.Array:
    """``log π(a_t|s_t)`` of what was done in ``data [N, T]``, ``[N, T]``."""
    return action_distributions(policy, params, data).log_prob(data.action)


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
    """The policy ``π(a|s) ∝ exp(φ(s, a)·θ)`` for given features; parameters are ``{"theta": [F]}``, zero at first.

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
    """The features ``φ(s, a)``: the observation and a constant in the block of action a, zeros in the other blocks.

    With these features `softmax_linear` is a multinomial logistic regression. ``F = num_actions *
    (obs_size + 1)``.
    """
    num_actions = checks.at_least("num_actions", num_actions, 1)
    size = obs_size(obs_shape) + 1

    def features(obs: jax.Array) -> jax.Array:
        row = jnp.concatenate([obs.reshape(-1), jnp.ones(1, obs.dtype)])
        blocks = jnp.eye(num_actions, dtype=obs.dtype)[:, :, None] * row[None, None, :]
        return blocks.reshape(num_actions, num_actions * size)

    return features


class Head(NamedTuple):
    """A policy that reads features instead of observations."""

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
    """A tanh network from features to actions: a `Categorical` or a `DiagGaussian`, as the space needs."""
    num_features = checks.at_least("num_features", num_features, 1)
    if _is_discrete(action_space):
        return _categorical_head(num_features, action_space, hidden_sizes)
    return _gaussian_head("action_head", num_features, action_space, hidden_sizes, 1.0)


def _categorical_head(
    num_features: int, action_space: spaces.Discrete, hidden_sizes: Sequence[int]
) -> Head:
    network = mlp(num_features, hidden_sizes, action_space.n, 0.01)
    return Head(network.init, lambda params, x: Categorical(network.apply(params, x)))


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
    network = mlp(num_features, hidden_sizes, math.prod(shape), 0.01)

    def init(key: jax.Array) -> Params:
        params = network.init(key)
        log_std = jnp.full(shape, math.log(initial_std), float)
        return {"body": params["body"], "head": {"mean": params["head"], "log_std": log_std}}

    def apply(params: Params, x: jax.Array) -> DiagGaussian:
        mean = network.apply({"body": params["body"], "head": params["head"]["mean"]}, x)
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
    """A tanh network from the observation to the logits of a `Discrete` action space; nearly uniform at first.

    Parameters are ``{"body": ..., "head": ...}``. With ``context_size`` C > 0 there is ``"context"
    [C]``, too: inputs beside the observation, zero at first (Zintgraf et al. 2019, CAVIA).
    """
    _num_actions("categorical_mlp", action_space)
    context_size = checks.at_least("context_size", context_size, 0)
    head = _categorical_head(obs_size(obs_shape) + context_size, action_space, hidden_sizes)
    return _with_context(head, context_size)


@checks.arguments
def gaussian_mlp(
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (64, 64),
    initial_std: float = 1.0,
    context_size: int = 0,
) -> Policy:
    """A tanh network from the observation to the mean of a diagonal Gaussian over a `Box` action space.

    The log standard deviation is a parameter that does not depend on the observation. Mean and
    standard deviation are in units of the half width of the space's nominal range (see `boxes`),
    and a new policy is centred in that range. So ``initial_std`` means the same for torques and for
    metres. The policy does not clip its draws, because a clipped action has another
    log-probability. The rollout clips the action for the environment and records the draw.
    Parameters are as in `categorical_mlp`; the head holds ``"mean"`` and ``"log_std"``.
    """
    context_size = checks.at_least("context_size", context_size, 0)
    num_features = obs_size(obs_shape) + context_size
    head = _gaussian_head("gaussian_mlp", num_features, action_space, hidden_sizes, initial_std)
    return _with_context(head, context_size)


def _with_context(head: Head, context_size: int) -> Policy:
    """The policy that applies ``head`` to the observation and to a context in its parameters."""
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
    """The policy of a kind: ``"mlp"``, ``"gaussian"``, ``"categorical"`` or ``"softmax_linear"``.

    ``"mlp"`` is ``"categorical"`` for discrete actions and ``"gaussian"`` for a `Box`. ``features``
    are those of the softmax-linear policy, ``obs -> φ(s, ·) [A, F]``; None means `action_features`.
    Raises ValueError if the policy does not fit the action space, or if ``initial_std`` is given to
    a policy that is not Gaussian.
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


def _num_actions(user: str, action_space: spaces.Space) -> int:
    if not _is_discrete(action_space):
        raise ValueError(
            f"{user} needs a discrete action space, not {action_space!r}; use gaussian_mlp"
        )
    return action_space.n


def _is_discrete(action_space: spaces.Space) -> TypeGuard[spaces.Discrete]:
    """Whether actions are discrete; raises ValueError unless the space is a `Discrete` with actions or a `Box`."""
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise ValueError(f"action_space={action_space!r} must be Discrete or Box")
    if isinstance(action_space, spaces.Discrete) and action_space.n < 1:
        raise ValueError(f"action_space={action_space!r} must have at least one action")
    return isinstance(action_space, spaces.Discrete)
