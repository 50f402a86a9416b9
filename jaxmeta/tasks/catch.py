"""Catch: move a paddle under a falling ball; gymnax's Catch-bsuite.

Osband et al. 2020, "Behaviour suite for reinforcement learning", section 2.2: 10 rows, 5 columns by default,
+1 for the ball caught and -1 for the ball missed, which ends the episode. By default there is a
single task, to test learners that were trained elsewhere. With the controls or the columns permuted
there are many.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import transform
from jaxmeta.tasks.family import TaskFamily


def follow(task: Any, obs: jax.Array) -> jax.Array:
    """The move towards the ball's column, int32 ``[]``: 0 is left, 2 is right. The paddle always gets there in time."""
    paddle = jnp.argmax(obs[-1])
    ball = jnp.argmax(jnp.max(obs[:-1], axis=0))
    return (1 + jnp.sign(ball - paddle)).astype(jnp.int32)


def catch(
    *,
    rows: int = 10,
    columns: int = 5,
    horizon: int = 9,
    permuted_actions: bool = False,
    permuted_columns: bool = False,
) -> TaskFamily:
    """Catch, the same task in every split unless controls or columns are permuted.

    The splits then have no permutation in common; see `transform.permuted_actions`.

    Args:
        rows: Rows of the board; the ball is down after ``rows - 1`` steps.
        columns: Columns of the board.
        horizon: Time limit of an episode, in steps.
        permuted_actions: Draw which action goes left, stays and goes right.
        permuted_columns: Draw the order of the observed columns.
    """
    rows = checks.at_least("rows", rows, 2)
    columns = checks.at_least("columns", columns, 2)
    family = transform.from_gymnax("Catch-bsuite", horizon=horizon, rows=rows, columns=columns)
    family = dataclasses.replace(family, optimal_action=follow)
    if permuted_actions:
        family = transform.permuted_actions(family)
    if permuted_columns:
        family = transform.permuted_observations(family, axis=1)
    return dataclasses.replace(family, name="catch")
