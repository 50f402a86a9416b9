"""Policies: pure functions over nested dicts of arrays.

A policy is four functions, so feed-forward and recurrent policies have one interface. Its last part, from features to
distributions of actions, is a head of `heads`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.distributions import Categorical, Distribution, FactoredCategorical
from jaxmeta.networks.encoders import Module, encoder
from jaxmeta.networks.heads import (
    Head,
    Std,
    action_head,
    categorical_head,
    count_actions,
    gaussian_head,
    has_categories,
)
from jaxmeta.networks.mlp import obs_size
from jaxmeta.tasks import boxes, environments
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Meta, Params, TimeStep, Trajectory


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


Act = Callable[[jax.Array, Meta, Any, Any, TimeStep], tuple[jax.Array, jax.Array, Any]]
"""The type of `Learner.act`."""


def acting(
    step: Callable[[Any, Any, TimeStep], tuple[Distribution, Any]],
    params: Callable[[Any, Any], Any],
    *,
    greedy: bool = False,
) -> Act:
    """`Learner.act` that draws from a policy.

    Args:
        step: `Policy.step`, or what does the same.
        params: ``(meta, agent) -> the parameters that step is given``.
        greedy: Take the most probable action instead of a draw. Its log-probability is recorded as 0, that of a
            deterministic policy.
    """

    def act(
        key: jax.Array, meta: Meta, agent: Any, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        distribution, memory = step(params(meta, agent), memory, timestep)
        if greedy:
            return distribution.mode(), jnp.zeros(()), memory
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


def check_fits(
    name: str, family: TaskFamily, distribution_of: Callable[[jax.Array], Distribution]
) -> None:
    """Raises ValueError unless a policy takes the family's observations and its actions are the family's.

    Args:
        name: The argument that the message names.
        family: The family.
        distribution_of: ``key -> distribution`` of one action on zeros in the shape of the family's observations. It is
            traced, not run.
    """
    made_for = f"{name} does not fit family {family.name!r}"
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        distribution = jax.eval_shape(distribution_of, key)
        action = jax.eval_shape(lambda key: distribution_of(key).sample(key), key)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{made_for}, whose observations have shape {family.observation_shape}: {type(error).__name__}: {first_line}"
        ) from error
    space = family.action_space
    try:
        environments.check_action(f"{made_for}: its action", action, space)
    except environments.InvalidEnvironment as error:
        raise ValueError(str(error)) from error
    if isinstance(distribution, Categorical) and isinstance(space, spaces.Discrete):
        chosen, there = distribution.logits.shape[-1], space.n
        if chosen != there:
            raise ValueError(
                f"{made_for}: it chooses among {chosen} actions, and there are {there}"
            )
    if isinstance(distribution, FactoredCategorical):
        sizes = boxes.categories("action_space", space)[1]
        if distribution.logits.shape[-1] != max(sizes):
            raise ValueError(
                f"{made_for}: it chooses among {distribution.logits.shape[-1]} values, and there are {max(sizes)}"
            )


def check_policy_fits(family: TaskFamily, policy: Policy) -> None:
    """Raises ValueError unless ``policy`` takes the family's observations and its actions are the family's."""
    space, dtype = family.action_space, jnp.result_type(float)
    kind = dtype if jnp.issubdtype(space.dtype, jnp.floating) else space.dtype

    def distribution_of(key: jax.Array) -> Distribution:
        timestep = TimeStep(
            jnp.zeros(family.observation_shape),
            jnp.zeros(space.shape, kind),
            jnp.zeros(()),
            jnp.ones((), bool),
        )
        return policy.step(policy.init(key), policy.memory(), timestep)[0]

    check_fits("policy", family, distribution_of)


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
    num_actions = count_actions("softmax_linear", action_space)
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


@checks.arguments
def categorical_mlp(
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (64, 64),
    context_size: int = 0,
) -> Policy:
    """A tanh network from the observation to the logits of actions; nearly uniform at first.

    The action space is a `Discrete`, a `MultiDiscrete` or a `Box` of integers (see `FactoredCategorical`).
    Parameters are ``{"body": ..., "head": ...}``. With ``context_size`` C > 0 there is ``"context"
    [C]``, too: inputs beside the observation, zero at first (Zintgraf et al. 2019, CAVIA).

    Raises:
        ValueError: the actions are continuous.
    """
    if not has_categories(action_space):
        raise ValueError(
            f"categorical_mlp needs a discrete action space, not {action_space!r}; use gaussian_mlp"
        )
    context_size = checks.at_least("context_size", context_size, 0)
    head = categorical_head(obs_size(obs_shape) + context_size, action_space, hidden_sizes)
    return _with_context(head, context_size)


@checks.arguments
def gaussian_mlp(
    obs_shape: Sequence[int],
    action_space: spaces.Space,
    hidden_sizes: Sequence[int] = (64, 64),
    initial_std: float = 1.0,
    context_size: int = 0,
    *,
    std: Std = "parameter",
    squashed: bool = False,
) -> Policy:
    """A tanh network from the observation to the mean of a diagonal Gaussian over a `Box` action space.

    Mean and standard deviation are in units of the half width of the space's nominal range (see
    `boxes`), and a new policy is centred in that range. So ``initial_std`` means the same for torques
    and for metres. The policy does not clip its draws, because a clipped action has another
    log-probability. The rollout clips the action for the environment and records the draw.
    Parameters are as in `categorical_mlp`; the head holds ``"mean"`` and ``"log_std"``.

    Args:
        obs_shape: Shape of an observation.
        action_space: A `Box` of floats of one axis.
        hidden_sizes: Widths of the hidden layers.
        initial_std: The standard deviation of a new policy, in half widths.
        context_size: As in `categorical_mlp`.
        std: ``"parameter"`` is alike in all states; ``"state"`` is an output of the network, within a factor
            of e⁴ of ``initial_std``.
        squashed: Pass the draw through tanh, so that it never leaves the bounds (`TanhGaussian`), instead of
            clipping. It needs bounds on both sides.
    """
    context_size = checks.at_least("context_size", context_size, 0)
    num_features = obs_size(obs_shape) + context_size
    head = gaussian_head(
        "gaussian_mlp", num_features, action_space, hidden_sizes, initial_std, std, squashed
    )
    return _with_context(head, context_size)


@checks.arguments
def encoded_policy(
    family: TaskFamily,
    module: Module,
    hidden_sizes: Sequence[int] = (),
    *,
    head: Callable[[int], Head] | None = None,
) -> Policy:
    """The policy on the features of an encoder, for example ``networks.cnn(family)`` or a flax module of your own.

    Parameters are ``{"encoder": ..., "body": ..., "head": ...}``.

    Args:
        family: Tasks with the observations and the actions.
        module: An `Encoder`, or a flax module, as in `encoders.encoder`.
        hidden_sizes: Widths of tanh layers between the features and the actions.
        head: ``(num_features) -> Head``; None is `action_head`.

    Raises:
        ValueError: the module does not fit the observations, as in `encoders.encoder`, or the action space has no
            default head.
    """
    encode = encoder(family, module)
    if head is None:
        chosen = action_head(encode.size, family.action_space, hidden_sizes)
    else:
        chosen = head(encode.size)

    def init(key: jax.Array) -> Params:
        encoder_key, head_key = jax.random.split(key)
        return {"encoder": encode.init(encoder_key)} | chosen.init(head_key)

    def apply(params: Params, obs: jax.Array) -> Distribution:
        return chosen.apply(params, encode.apply(params["encoder"], obs))

    return feed_forward(init, apply)


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

    ``"mlp"`` is ``"gaussian"`` for a `Box` of floats and ``"categorical"`` for all others. ``features``
    are those of the softmax-linear policy, ``obs -> φ(s, ·) [A, F]``; None means `action_features`.
    Raises ValueError if the policy does not fit the action space, or if ``initial_std`` is given to
    a policy that is not Gaussian.
    """
    checks.choice("policy", kind, POLICIES)
    checks.between("initial_std", initial_std, 1e-12, 1e6)
    if kind == "mlp":
        kind = "categorical" if has_categories(action_space) else "gaussian"
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
        features = action_features(obs_shape, count_actions(kind, action_space))
    phi = jax.eval_shape(features, jnp.zeros(obs_shape))
    return softmax_linear(features, num_features=phi.shape[-1], action_space=action_space)


POLICIES = ("mlp", "categorical", "gaussian", "softmax_linear")
