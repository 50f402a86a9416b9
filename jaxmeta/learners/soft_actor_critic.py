r"""Soft actor-critic (SAC): the losses and the loop of gradient steps that off-policy learners with continuous actions share.

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications": a critic of two action values $Q_1, Q_2$ with a target
network $\bar Q$, a policy π that is told by its critic, and a temperature α that keeps the policy's entropy at a target
$\bar H$:

$$y = r + γ (\min_i \bar Q_i(s', a') - α \log π(a'|s')), \quad L_Q = ½ \sum_i \mathrm{mean} (Q_i(s, a) - y)^2,$$

$$L_π = \mathrm{mean} (α \log π(\tilde a|s) - \min_i Q_i(s, \tilde a)), \quad L_α = -α\, \mathrm{mean} (\log π(\tilde a|s) + \bar H)$$

with $a' \sim π(s')$ and $\tilde a \sim π(s)$. Filtered cloning (Grigsby et al. 2024, "AMAGO: scalable in-context reinforcement
learning for adaptive agents") may be added to the policy's loss: the policy takes after old actions that were better than its own,

$$L_C = -\mathrm{mean} (1[A > 0] \log π(a|s)), \quad A = ½ \sum_i (Q_i(s, a) - Q_i(s, \tilde a)).$$

Each loss moves its own part alone. Values and α are in units of the spread of
returns, and actions are in half widths (`networks.soft_actor_critic`), so neither unit changes anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.estimators.streams import count
from jaxmeta.estimators.units import in_units
from jaxmeta.meta_updates.gradients import guarded_update
from jaxmeta.types import Params


class State(NamedTuple):
    """The state of the slow loop."""

    meta: Any
    """The part that the learner reads."""
    optimizer: Any
    """The optimiser's state."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""
    target: Params
    """The target network of the critic."""
    replay: Any
    """Old experience: whole trials, or tasks with their steps."""


class Learned(NamedTuple):
    """The parts that a gradient step changes."""

    params: Params
    """All parameters, with a part ``"critic"``."""
    target: Params
    """The target network's parameters, like the critic's."""
    optimizer: Any
    """The optimiser's state."""


Losses = Callable[[Params, Params, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""``(params, target, key, batch) -> (loss [], report)``."""


def soft_value(q: jax.Array, log_prob: jax.Array, temperature: jax.Array) -> jax.Array:
    """``min_i Q_i - α log π``, ``[...]``, of ``q [2, ...]`` and ``log_prob [...]`` of an action of the policy."""
    return jnp.min(q, axis=0) - temperature * log_prob


def soft_target(
    reward: jax.Array, discount: jax.Array, v_next: jax.Array, value_scale: jax.Array
) -> jax.Array:
    """``y``, ``[...]``, in units: ``reward``, ``discount`` (0 where nothing follows) and the soft values ``v_next`` are ``[...]``
    and not in units; ``value_scale [2]`` is the mean and the spread of returns."""
    mean, spread = value_scale
    return in_units(reward + discount * v_next - mean, spread)


def mean_where(x: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean of ``x [...]`` where ``counted`` (bool ``[...]``), ``[]``; 0 without any."""
    return jnp.sum(jnp.where(counted, x, 0.0)) / count(counted, x)


def critic_loss(q: jax.Array, target: jax.Array, counted: jax.Array) -> jax.Array:
    """``L_Q [...]`` of ``q [2, ...]`` and ``target [...]``, which is a constant, ``[]``."""
    error = jnp.sum((q - jax.lax.stop_gradient(target)[None]) ** 2, axis=0)
    return 0.5 * mean_where(error, counted)


def actor_loss(
    log_prob: jax.Array, q: jax.Array, temperature: jax.Array, counted: jax.Array
) -> jax.Array:
    """``L_π []`` of actions of the policy with ``log_prob [...]`` and ``q [2, ...]``; α is a constant."""
    return -mean_where(soft_value(q, log_prob, jax.lax.stop_gradient(temperature)), counted)


def cloning_loss(
    log_prob: jax.Array, q: jax.Array, q_drawn: jax.Array, counted: jax.Array
) -> jax.Array:
    """``L_C []`` of old actions with ``log_prob [...]`` and ``q [2, ...]``; ``q_drawn [2, ...]`` is of the policy's own draws."""
    advantage = jax.lax.stop_gradient(jnp.mean(q, axis=0) - jnp.mean(q_drawn, axis=0))
    return -mean_where(jnp.where(advantage > 0, log_prob, 0.0), counted)


def temperature_loss(
    log_temperature: jax.Array, log_prob: jax.Array, target_entropy: Any, counted: jax.Array
) -> jax.Array:
    """``L_α []``; log-probabilities ``[...]`` are constants, and the target is in nats."""
    missing = jax.lax.stop_gradient(log_prob) + target_entropy
    return -jnp.exp(log_temperature) * mean_where(missing, counted)


def polyak(target: Params, params: Params, rate: Any) -> Params:
    """``target`` moved by a share ``rate`` of the way to ``params``: trees of arrays of any shape."""
    return jax.tree.map(lambda slow, fast: slow + rate * (fast - slow), target, params)


def learn_from_replay(
    key: jax.Array,
    learned: Learned,
    draw: Callable[[jax.Array], Any],
    *,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    target_rate: Any,
    num_steps: int,
    apply: jax.Array,
) -> tuple[Learned, dict[str, jax.Array], jax.Array]:
    """``learned`` after gradient steps on batches of old experience, each followed by a step of the target network.

    Args:
        key: A key.
        learned: Parameters, target and optimiser.
        draw: ``(key) -> batch`` with ``counted``, drawn anew for each step.
        losses: The loss of all parts together.
        optimizer: The optimiser.
        target_rate: The share of the way that the target moves to the critic.
        num_steps: Gradient steps.
        apply: bool ``[]``; without it nothing changes.

    Returns:
        ``(learned, reports [num_steps], applied [num_steps])``. A step on a batch that counts nothing, or whose gradient is
        not finite, changes nothing.
    """

    def step(learned: Learned, key: jax.Array) -> tuple[Learned, tuple]:
        draw_key, loss_key = jax.random.split(key)
        batch = draw(draw_key)
        (_, report), gradient = jax.value_and_grad(losses, has_aux=True)(
            learned.params, learned.target, loss_key, batch
        )
        norm = optax.tree.norm(gradient)
        applied = jnp.isfinite(norm) & jnp.any(batch.counted) & apply
        params, optimizer_state = guarded_update(
            optimizer, gradient, learned.optimizer, learned.params, apply=applied
        )
        moved = polyak(learned.target, params["critic"], target_rate)
        target = jax.tree.map(lambda x, y: jnp.where(applied, x, y), moved, learned.target)
        report = report | {"meta_grad_norm": norm}
        return Learned(params, target, optimizer_state), (report, applied)

    learned, (reports, applied) = jax.lax.scan(step, learned, jax.random.split(key, num_steps))
    return learned, reports, applied
