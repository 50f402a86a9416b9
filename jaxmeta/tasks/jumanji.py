"""Jumanji's games: the board that is dealt is the task, and it is the same in every episode.

Bonnet et al. 2024, "Jumanji: a diverse suite of scalable reinforcement learning environments in JAX". A task is a
board, with its walls, its mines or its items, and the key of the game's own chance. So what an agent has found in
one episode is where it was in the next. An observation is a `Dict` of the game's own parts, which is flattened.

Needs Jumanji: ``pip install "jaxmeta[jumanji]"``.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks.composite import MultiDiscrete
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.functions import from_functions


def _package() -> Any:
    try:
        import jumanji
    except ImportError as error:
        raise checks.missing("jumanji", "jumanji") from error
    return jumanji


@functools.cache
def _family(game: Any, horizon: int) -> TaskFamily:
    env = _package().make(game) if isinstance(game, str) else game

    def board(key: jax.Array) -> dict[str, Any]:
        # Words instead of a key: the game continues from them in every episode, which is not a key used twice.
        with jax.numpy_rank_promotion("allow"):
            state, first = env.reset(jax.random.key_data(key))
        return {"obs": _parts(first.observation), "state": jax.tree.map(jnp.asarray, state)}

    def reset(key: jax.Array, task: dict[str, Any]) -> tuple[dict[str, jax.Array], Any]:
        return task["obs"], task["state"]

    def step(key: jax.Array, state: Any, action: jax.Array, task: dict[str, Any]) -> tuple:
        with jax.numpy_rank_promotion("allow"):
            state, after = env.step(state, action)
        return _parts(after.observation), state, after.reward, after.last()

    seen = jax.eval_shape(board, jax.random.key(0))["obs"]
    parts = {k: spaces.Box(-jnp.inf, jnp.inf, x.shape, jnp.float32) for k, x in seen.items()}
    return from_functions(
        reset,
        step,
        observation_space=spaces.Dict(parts),
        action_space=_space(env.action_spec),
        horizon=horizon,
        train=board,
        name="jumanji",
    )


def _parts(observation: Any) -> dict[str, jax.Array]:
    """The parts of an observation by their names, as floats."""
    leaves = jax.tree_util.tree_leaves_with_path(observation)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    return {name: jnp.asarray(x, jnp.float32) for name, x in named.items()}


def _space(spec: Any) -> spaces.Space:
    """The space of the actions of a Jumanji ``spec``."""
    if hasattr(spec, "num_values"):
        sizes = jnp.asarray(spec.num_values)
        return MultiDiscrete(sizes.tolist()) if sizes.ndim else spaces.Discrete(int(sizes))
    return spaces.Box(spec.minimum, spec.maximum, spec.shape, jnp.float32)


def jumanji(game: Any = "Minesweeper-v0", *, horizon: int = 50) -> TaskFamily:
    """A game of Jumanji: its board is drawn per task, and episode after episode begins on it.

    In Minesweeper the board has mines that nobody sees. A step that opens a new square earns 1; a mine, and a square
    that is open already, end the episode. So an agent learns in one episode where not to step in the next.

    Boards of all splits have the same distribution, for it has no outside. There is no expert. An end by the game's
    own time limit counts as a termination: choose a horizon below it.

    Args:
        game: A name that Jumanji has registered, or an environment of its, such as
            ``Minesweeper(UniformSamplingGenerator(5, 5, 4))``. Its reward must be one number.
        horizon: Time limit of an episode, in steps.

    Raises:
        ValueError: the name is unknown, or the horizon is below 1.
        TypeError: ``game`` is neither a name nor an environment.
        ImportError: Jumanji is not installed.
    """
    checks.at_least("horizon", horizon, 1)
    package = _package()
    if isinstance(game, str):
        checks.choice("game", game, package.registered_environments())
    elif not isinstance(game, package.Environment):
        raise TypeError(f"game={game!r} must be a name or an environment of Jumanji")
    return _family(game, horizon)
