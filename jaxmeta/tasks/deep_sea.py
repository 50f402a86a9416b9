"""Deep sea: only one way down leads to the treasure. Which action goes right differs from cell to cell.

bsuite's experiment (Osband et al. 2020, "Behaviour suite for reinforcement learning", section 2.2),
in gymnax's dynamics: from the top left corner of an N×N grid each step goes a row down and a column
to the left or right. The treasure, of reward 1, is in the bottom right corner: all N steps must go
right, and each costs 0.01 / N. No reward on the way points to it, so an undirected search needs 2^N
episodes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import transform
from jaxmeta.tasks.family import TaskFamily

OUT_OF_DISTRIBUTION_PROBABILITY = 0.9


def go_right(task: Any, obs: jax.Array) -> jax.Array:
    """The action that goes right from the observed cell, int32 ``[]``."""
    mapping = task.drawn["action_mapping"]
    return mapping.reshape(-1)[jnp.argmax(jnp.ravel(obs))]


def optimal_return(task: Any) -> jax.Array:
    """The treasure minus the cost of going right all the way, ``[]``."""
    return 1.0 - task.inner.unscaled_move_cost


def deep_sea(*, length: int = 8) -> TaskFamily:
    """Deep sea with the action that goes right drawn for each cell, by a fair coin.

    The coins of train and test are fair; two draws are the same task with probability 2^(-N (N + 1)
    / 2). Out of distribution action 1 goes right with probability 0.9.

    Args:
        length: N: rows, columns and steps of an episode.
    """
    checks.at_least("length", length, 1)

    def mapping(probability: float) -> Callable[[jax.Array], dict[str, jax.Array]]:
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            right = jax.random.bernoulli(key, probability, (length, length))
            return {"action_mapping": right.astype(jnp.int32)}

        return draw

    family = transform.from_gymnax("DeepSea-bsuite", horizon=length, size=length)
    family = transform.pinned(
        family,
        "action_mapping",
        inside=mapping(0.5),
        outside=mapping(OUT_OF_DISTRIBUTION_PROBABILITY),
    )
    return dataclasses.replace(
        family, name="deep_sea", optimal_action=go_right, optimal_return=optimal_return
    )
