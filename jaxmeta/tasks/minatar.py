"""MinAtar's five games with permuted controls: the agent must find out which button does what.

Young & Tian 2019, "MinAtar: an Atari-inspired testbed for thorough and reproducible reinforcement
learning experiments", in gymnax's dynamics: a 10×10 board observed as ``[10, 10, C]`` channels of
zeros and ones. A task is the mapping of the controls and, by settings, the stickiness of actions,
the difficulty of the game and the sign of the rewards.

Each game has an expert: a short rule that is told the task and reads the present board. No expert
is optimal.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import transform
from jaxmeta.tasks.family import Controller, TaskFamily
from jaxmeta.tasks.transform.wrappers import Wrapper, innermost, replaced

Ranges = Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Asterix(Wrapper):
    """gymnax's Asterix with MinAtar's limit of ramping: moving objects pause for at least one frame.

    In gymnax the pause shrinks to 0 after a short ``init_move_interval``.
    """

    ends_by = Wrapper.ends_by  # the overridden methods end no episode

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict]:
        obs, state, *rest = self.env.step_env(key, state, action, params)
        pause = jnp.maximum(innermost(state).move_speed, 1)
        return obs, replaced(state, {"move_speed": pause}), *rest


def _game(
    name: str,
    env_name: str,
    expert: Controller,
    live: tuple[str, ...],
    *,
    horizon: int,
    permuted_actions: bool,
    max_stickiness: float,
    signed_rewards: bool,
    parameters: Ranges | None = None,
    fixed: Mapping[str, Any] | None = None,
    around: Callable[[Any], Any] = lambda env: env,
) -> TaskFamily:
    """The family of a game with the transformations that its settings ask for; ``live`` names the
    parameters that the game reads."""
    checks.between("max_stickiness", max_stickiness, 0.0, 0.5)
    family = transform.from_gymnax(env_name, horizon=horizon)
    family = dataclasses.replace(family, env=around(family.env), expert_action=expert)
    if fixed:
        family = transform.with_parameters(family, **fixed)
    if parameters:
        for parameter in parameters:
            checks.choice("parameters", parameter, live)
        family = transform.drawn_parameters(family, parameters)
    if permuted_actions:
        family = transform.permuted_actions(family)
    if max_stickiness > 0:
        family = transform.sticky_actions(family, high=max_stickiness, outside=2 * max_stickiness)
    if signed_rewards:
        family = transform.signed_rewards(family)
    return dataclasses.replace(family, name=name)


def _cell(channel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row and column of the single 1 on a channel ``[10, 10]``."""
    index = jnp.argmax(jnp.ravel(channel))
    return index // 10, index % 10


def rally(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Breakout: moves to the place where a falling ball will land, and stays under a rising ball.

    ``obs [10, 10, 4] -> action []``. The ball moves one cell along each axis and stays a step at a
    wall, so its column is a folded line. If the paddle hits the ball in the column that the ball
    comes from, the ball keeps its direction; if in the column that it goes to, the ball turns back.
    The rule sends it to the side with more bricks.
    """
    _, paddle = _cell(obs[..., 0])
    row, column = _cell(obs[..., 1])
    last_row, last_column = _cell(obs[..., 2])
    # At an episode's start, and when it turns at a wall, there is no trail to tell the direction.
    inwards = jnp.where(column < 5, 1, -1)
    across = jnp.where(column == last_column, inwards, column - last_column)

    def after(steps: jax.Array) -> jax.Array:
        unfolded = (column + across * steps) % 20
        return jnp.minimum(unfolded, 19 - unfolded)

    comes_from, goes_to = after(8 - row), after(9 - row)
    bricks = jnp.sum(obs[..., 3], axis=0)
    to_right = jnp.sum(bricks * jnp.sign(jnp.arange(10) - goes_to)) > 0
    landing = jnp.where(to_right == (goes_to > comes_from), comes_from, goes_to)
    target = jnp.where(row >= last_row, landing, column)
    stay, left, right = 0, 1, 2
    return jnp.where(target < paddle, left, jnp.where(target > paddle, right, stay)).astype(
        jnp.int32
    )


def cross(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Freeway: goes up, unless a car is about to pass in the row above; goes back from a car in its own row.

    ``obs [10, 10, 7] -> action []``.
    """
    row, _ = _cell(obs[..., 0])
    # A car of speed v, 1 to 5, moves every v + 1 frames; the chicken stays in a row for three.
    car = jnp.argmax(obs[..., 1], axis=1)
    trail = jnp.max(obs[..., 2:], axis=2)
    behind = jnp.argmax(trail, axis=1)
    direction = jnp.where((car - behind) % 10 == 1, 1, -1)
    pause = jnp.argmax(jnp.max(obs[..., 2:], axis=1), axis=1)
    reach = jnp.where(pause == 0, 2, 1)
    ahead = direction * (4 - car)
    there = jnp.max(obs[..., 1], axis=1) > 0
    danger = there & (ahead >= 0) & (ahead <= reach)
    wait, up, down = 0, 1, 2
    blocked = danger[jnp.maximum(row - 1, 0)]
    return jnp.where(~blocked, up, jnp.where(danger[row], down, wait)).astype(jnp.int32)


def collect(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Asterix: goes to the nearest gold over cells that no enemy occupies now or after its next move.

    ``obs [10, 10, 4] -> action []``.
    """
    row, column = _cell(obs[..., 0])
    enemy, trail, gold = (obs[..., i] > 0 for i in (1, 2, 3))
    columns = jnp.arange(10)[None, :]
    # An object whose trail is on its left moves right; at the edge there is no trail yet.
    to_right = jnp.roll(trail, 1, axis=1) | (columns == 0)
    ahead = jnp.roll(enemy & to_right, 1, axis=1) | jnp.roll(enemy & ~to_right, -1, axis=1)
    danger = enemy | ahead
    moves = jnp.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0]])
    rows = jnp.clip(row + moves[:, 0], 1, 8)
    places = jnp.clip(column + moves[:, 1], 0, 9)
    distance = jnp.abs(jnp.arange(10)[None, :, None] - rows[:, None, None]) + jnp.abs(
        jnp.arange(10)[None, None, :] - places[:, None, None]
    )
    nearest = jnp.min(jnp.where(gold[None], distance, 30), axis=(1, 2))
    middle = jnp.abs(places - 4.5) / 10  # without gold, the middle gives time to react
    return jnp.argmin(nearest + middle + 100 * danger[rows, places]).astype(jnp.int32)


def shoot(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Space Invaders: goes under the aliens and fires, but never stands or steps under a bullet.

    ``obs [10, 10, 6] -> action []``.
    """
    _, column = _cell(obs[..., 0])
    aliens = jnp.max(obs[..., 1], axis=0) > 0
    steps = jnp.arange(10) - column
    nearest = steps[jnp.argmin(jnp.where(aliens, jnp.abs(steps), 20))]
    moves = jnp.array([0, -1, 1, 0])  # wait, left, right, fire
    falling = jnp.max(obs[5:9, :, 5], axis=0)
    about_to_hit = falling[jnp.clip(column + moves, 0, 9)]
    wanted = jnp.where(nearest == 0, jnp.arange(4) == 3, moves == jnp.sign(nearest))
    return jnp.argmax(wanted - 2 * about_to_hit).astype(jnp.int32)


def dive(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Seaquest: fires at an enemy ahead, else goes to an enemy or a diver; surfaces with six divers or for air.

    ``obs [10, 10, 10] -> action []``. Of the moves that no enemy or bullet can meet in the next
    step the rule takes the one nearest to a target. Air costs a diver, and without divers the
    episode ends at the surface. Short of air and divers, the rule looks for divers alone.
    """
    row, column = _cell(obs[..., 0])
    _, behind = _cell(obs[..., 1])
    facing = jnp.where((column - behind) % 10 == 1, 1, -1)
    bullet, trail, enemy_bullet, fish, enemy_sub, diver = (
        obs[..., i] > 0 for i in (2, 3, 4, 5, 6, 9)
    )
    enemy = fish | enemy_sub
    # An object moves away from its trail; a bullet has no trail.
    to_right, to_left = (
        enemy & (jnp.roll(trail, by, axis=1) | (jnp.arange(10) == edge)[None]) | enemy_bullet
        for by, edge in ((1, 0), (-1, 9))
    )
    danger = to_right | to_left | jnp.roll(to_right, 1, axis=1) | jnp.roll(to_left, -1, axis=1)

    # Wait, left, up, right, down, fire.
    moves = jnp.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0], [0, 0]])
    rows = jnp.clip(row + moves[:, 0], 0, 8)
    places = jnp.clip(column + moves[:, 1], 0, 9)
    heading = jnp.where(moves[:, 1] == 0, facing, moves[:, 1])
    down = jnp.abs(jnp.arange(10)[None, :, None] - rows[:, None, None])
    across = jnp.arange(10)[None, None, :] - places[:, None, None]

    def nearest(distance: jax.Array, there: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(there, distance, 40), axis=(1, 2))

    # Enemies that a bullet is about to hit count as shot.
    left_over = enemy & (jnp.sum(enemy, axis=1) > jnp.sum(bullet, axis=1))[:, None]
    turned = jnp.sign(across) == heading[:, None, None]
    to_enemy = nearest(1 + down + ~turned + jnp.abs(across) / 10, left_over)
    to_diver = nearest(down + jnp.abs(across), diver)
    held = jnp.sum(obs[9, :, 8])
    air = jnp.sum(obs[9, :, 7]) * task.max_oxygen / 10
    short = air < row + 10
    under = jnp.where(short, to_diver, jnp.minimum(to_enemy, to_diver))
    target = jnp.where((held == 6) | (short & (held > 0)), rows, under)

    ahead = jnp.sign(jnp.arange(10) - column) == facing
    fire = jnp.sum(enemy[row] & ahead) > jnp.sum(bullet[row] & ahead)
    shoots = fire & (jnp.arange(6) == 5)
    # Objects enter unseen at the left and right sides, and the middle is far from both.
    side = 3 * ((places == 0) | (places == 9))
    middle = (jnp.abs(rows - 4) + jnp.abs(places - 4.5)) / 100
    drowned = (held == 0) & (row > 0) & (rows == 0)
    cost = target - 5 * shoots + side + middle + 100 * (danger[rows, places] | drowned)
    return jnp.argmin(cost).astype(jnp.int32)


def breakout(
    *,
    horizon: int = 500,
    permuted_actions: bool = True,
    max_stickiness: float = 0.0,
    signed_rewards: bool = False,
) -> TaskFamily:
    """Breakout: the paddle's three controls permuted; a brick earns 1, and losing the ball ends the episode.

    Three controls have six permutations, two for each split; see `transform.permuted_actions`.

    Args:
        horizon: Time limit of an episode, in steps.
        permuted_actions: Draw which action does what.
        max_stickiness: The probability that an action is repeated is uniform from 0 to this value,
            and from this value to twice as much out of distribution; 0 repeats no action.
        signed_rewards: In half of the tasks rewards are penalties. Then there is no expert.
    """
    return _game(
        "breakout",
        "Breakout-MinAtar",
        rally,
        (),
        horizon=horizon,
        permuted_actions=permuted_actions,
        max_stickiness=max_stickiness,
        signed_rewards=signed_rewards,
    )


def freeway(
    *,
    horizon: int = 500,
    permuted_actions: bool = True,
    max_stickiness: float = 0.0,
    signed_rewards: bool = False,
    parameters: Ranges | None = None,
) -> TaskFamily:
    """Freeway: the chicken's three controls permuted; each crossing of the road earns 1.

    Args:
        horizon: Time limit of an episode, in steps; nothing else ends one.
        permuted_actions: As in `breakout`.
        max_stickiness: As in `breakout`.
        signed_rewards: As in `breakout`.
        parameters: Ranges ``{name: (low, high)}`` of integers to draw: ``player_speed``, the frames
            between two moves, is 3.
    """
    return _game(
        "freeway",
        "Freeway-MinAtar",
        cross,
        ("player_speed",),
        horizon=horizon,
        permuted_actions=permuted_actions,
        max_stickiness=max_stickiness,
        signed_rewards=signed_rewards,
        parameters=parameters,
    )


def asterix(
    *,
    horizon: int = 500,
    permuted_actions: bool = True,
    max_stickiness: float = 0.0,
    signed_rewards: bool = False,
    ramping: bool = True,
    parameters: Ranges | None = None,
) -> TaskFamily:
    """Asterix: the five controls permuted; gold earns 1, and touching an enemy ends the episode.

    Args:
        horizon: Time limit of an episode, in steps.
        permuted_actions: As in `breakout`.
        max_stickiness: As in `breakout`.
        signed_rewards: As in `breakout`.
        ramping: Let the game become faster.
        parameters: Ranges ``{name: (low, high)}`` of integers to draw: ``init_spawn_speed`` (10),
            ``init_move_interval`` (5) and ``ramp_interval`` (100), all in frames.
    """
    return _game(
        "asterix",
        "Asterix-MinAtar",
        collect,
        ("init_spawn_speed", "init_move_interval", "ramp_interval"),
        horizon=horizon,
        permuted_actions=permuted_actions,
        max_stickiness=max_stickiness,
        signed_rewards=signed_rewards,
        parameters=parameters,
        fixed={"ramping": ramping},
        around=Asterix,
    )


def space_invaders(
    *,
    horizon: int = 500,
    permuted_actions: bool = True,
    max_stickiness: float = 0.0,
    signed_rewards: bool = False,
    parameters: Ranges | None = None,
) -> TaskFamily:
    """Space Invaders: the cannon's four controls permuted; an alien earns 1, and a hit on the cannon ends the episode.

    Args:
        horizon: Time limit of an episode, in steps.
        permuted_actions: As in `breakout`.
        max_stickiness: As in `breakout`.
        signed_rewards: As in `breakout`.
        parameters: Ranges ``{name: (low, high)}`` of integers to draw: ``enemy_move_interval``
            (12), ``enemy_shot_interval`` (10) and ``shot_cool_down`` (5), all in frames.
    """
    return _game(
        "space_invaders",
        "SpaceInvaders-MinAtar",
        shoot,
        ("enemy_move_interval", "enemy_shot_interval", "shot_cool_down"),
        horizon=horizon,
        permuted_actions=permuted_actions,
        max_stickiness=max_stickiness,
        signed_rewards=signed_rewards,
        parameters=parameters,
    )


def seaquest(
    *,
    horizon: int = 500,
    permuted_actions: bool = True,
    max_stickiness: float = 0.0,
    signed_rewards: bool = False,
    ramping: bool = True,
    parameters: Ranges | None = None,
) -> TaskFamily:
    """Seaquest: the submarine's six controls permuted; a shot enemy earns 1, rescued divers earn up to 10.

    Args:
        horizon: Time limit of an episode, in steps.
        permuted_actions: As in `breakout`.
        max_stickiness: As in `breakout`.
        signed_rewards: As in `breakout`.
        ramping: Let the game become faster after each time at the surface.
        parameters: Ranges ``{name: (low, high)}`` of integers to draw: ``init_spawn_speed`` (20),
            ``init_move_interval`` (5), ``max_oxygen`` (200), ``diver_spawn_speed`` (30),
            ``diver_move_interval`` (5), ``enemy_shot_interval`` (10), ``shot_cool_down`` (5), in
            frames.
    """
    return _game(
        "seaquest",
        "Seaquest-MinAtar",
        dive,
        (
            "init_spawn_speed",
            "init_move_interval",
            "max_oxygen",
            "diver_spawn_speed",
            "diver_move_interval",
            "enemy_shot_interval",
            "shot_cool_down",
        ),
        horizon=horizon,
        permuted_actions=permuted_actions,
        max_stickiness=max_stickiness,
        signed_rewards=signed_rewards,
        parameters=parameters,
        fixed={"ramping": ramping},
    )
