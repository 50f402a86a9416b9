"""Learning of action values on trials: λ-returns, their error, schedules.

`recurrent_q` learns by it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.estimators.units import in_units
from jaxmeta.learners.recurrent import trial_estimates, values_to_come
from jaxmeta.learners.trial_replay import Batch
from jaxmeta.networks.action_values import ActionValues
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.types import Params

TRACES = ("peng", "watkins")


def scheduled(hyper: Any, num_updates: jax.Array) -> Any:
    """``hyper`` with training's ε and temperature and the step size after ``num_updates []`` meta-updates."""
    done = num_updates.astype(float)
    left = jnp.maximum(1.0 - done / hyper.epsilon_updates, 0.0)
    epsilon = hyper.last_epsilon + left * (hyper.first_epsilon - hyper.last_epsilon)
    cooling = hyper.first_temperature - hyper.last_temperature
    temperature = hyper.last_temperature + left * cooling
    rate = jnp.maximum(1.0 - done / hyper.anneal_updates, 0.0) * hyper.learning_rate
    return hyper._replace(learning_rate=rate, epsilon=epsilon, temperature=temperature)


def exploring(hyper: Any, num_tasks: int) -> Any:
    """``hyper`` with ε and temperature of each of M = ``num_tasks`` tasks, ``[M]``: times factors that stand evenly around 1.

    The factor of task i is ``1 + diversity ((2 i + 1) / M - 1)``, and no ε is more than 1.
    """
    place = (2.0 * jnp.arange(num_tasks, dtype=float) + 1.0) / num_tasks - 1.0
    factor = 1.0 + hyper.diversity * place
    epsilon = jnp.minimum(hyper.epsilon * factor, 1.0)
    return hyper._replace(epsilon=epsilon, temperature=hyper.temperature * factor)


def value_error(
    q: jax.Array,
    batch: Batch,
    value_scale: jax.Array,
    hyper: Any,
    *,
    trace: str,
    divisor: jax.Array,
) -> jax.Array:
    """Half the squared error of the values ``q [B, T, A]`` to their λ-returns over ``divisor []``, in units of the returns' spread, ``[]``.

    The divisor is the number of counted steps of the whole minibatch, of which the trials may be a part. The other arguments are
    those of `lambda_returns`, which are held fixed.
    """
    mean, spread = value_scale
    fixed = jax.lax.stop_gradient(q)
    returns = lambda_returns(fixed, batch, value_scale, hyper, trace)
    target = in_units(returns - mean, spread)
    taken = jnp.sum(jnp.where(_one_hot(batch.action, q), q, 0.0), axis=-1)
    error = jnp.where(batch.counted, taken - target, 0.0)
    return 0.5 * jnp.sum(error**2) / divisor.astype(error.dtype)


def lambda_returns(
    q: jax.Array, batch: Batch, value_scale: jax.Array, hyper: Any, trace: str
) -> jax.Array:
    """The λ-returns ``G [B, T]`` of trials, from values ``q [B, T, A]`` in units; rewards and G are not in units.

    Args:
        q: The values.
        batch: The trials.
        value_scale: ``[2]``, mean and spread of returns, the units of ``q``.
        hyper: Its ``discount`` and ``trace_lambda``.
        trace: One of `TRACES`.
    """
    mean, spread = value_scale
    best = jnp.where(batch.counted, mean + spread * jnp.max(q, axis=-1), 0.0)
    goes_on = jnp.ones_like(best)
    if trace == "watkins":
        greedy = jnp.argmax(q, axis=-1).astype(batch.action.dtype) == batch.action
        goes_on = jax.vmap(values_to_come)(greedy.astype(best.dtype))

    def returns(reward: jax.Array, v: jax.Array, goes_on: jax.Array) -> jax.Array:
        lambda_ = hyper.trace_lambda * goes_on
        return trial_estimates(reward, v, discount=hyper.discount, lambda_=lambda_)[1]

    return jax.vmap(returns)(batch.reward, best, goes_on)


def unrolled(params: Params, inputs: Inputs, network: ActionValues) -> jax.Array:
    """Outputs ``[B, T, A]`` of a network at all steps of trials ``[B, T]``, from an empty memory; values are in units."""
    return jax.vmap(network.unroll, in_axes=(None, None, 0))(params, network.initial(), inputs)


def _one_hot(action: jax.Array, q: jax.Array) -> jax.Array:
    return jax.nn.one_hot(action, q.shape[-1], dtype=bool)
