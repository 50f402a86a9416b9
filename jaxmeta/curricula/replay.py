"""Prioritized level replay: draw tasks again that still teach much.

Jiang, Grefenstette & Rocktäschel 2021, "Prioritized level replay"; robust PLR: Jiang et al. 2021, "Replay-guided adversarial
environment design", which learns from replayed tasks alone. Each task of a batch is a replayed one with a fixed
probability, once enough tasks are in the buffer; else it is a new one.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.curricula import levels as buffers
from jaxmeta.curricula.levels import Levels, Priorities
from jaxmeta.curricula.scores import SCORES
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import Curriculum, Draw, Meta, Task, TaskResults

ScoreName = Literal["max_monte_carlo", "positive_value_loss", "absolute_advantage", "learnability"]


@dataclasses.dataclass(frozen=True)
class PLRConfig:
    """Settings of prioritized level replay."""

    capacity: int = 4000
    """Tasks in the buffer (C)."""
    replay: float = 0.5
    """Probability that a task of a batch is one from the buffer."""
    score: ScoreName = "max_monte_carlo"
    """The score of a task, one of `scores.SCORES`."""
    temperature: float = 0.3
    """β: a task is drawn with probability in proportion to ``rank^(-1/β)``."""
    staleness: float = 0.3
    """ρ: the share of draws by the time since a task's last draw."""
    fill: float = 0.5
    """The share of the buffer that must be filled before tasks are drawn from it."""
    anneals: bool = False
    """Whether the probability of replay grows with the filled share of the buffer, from 0 to ``replay``."""
    learns_from_new: bool = True
    """Whether to learn from new tasks too. Without it this is robust PLR, which learns nothing until the buffer is filled."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.at_least("capacity", self.capacity, 1)
        for name in ("replay", "staleness", "fill"):
            checks.between(name, getattr(self, name), 0, 1)
        checks.between("temperature", self.temperature, 1e-3, 1e3)
        checks.choice("score", self.score, SCORES)

    @property
    def priorities(self) -> Priorities:
        """The settings of the distribution of replayed tasks."""
        return Priorities(self.temperature, self.staleness)


class Replayed(NamedTuple):
    """Where the tasks of a batch come from."""

    places: jax.Array
    """``[M]``, int32: the places of replayed tasks in the buffer."""
    replayed: jax.Array
    """``[M]``, bool: the task is from the buffer."""


@checks.arguments
def plr(family: TaskFamily, config: PLRConfig = PLRConfig()) -> Curriculum:
    """Prioritized level replay on the training tasks of a family.

    Use it if tasks differ in how much they teach. With ``learns_from_new=False`` it is robust PLR.

    Args:
        family: The family whose training tasks are drawn.
        config: The buffer's size, the score and the probabilities.

    Raises:
        TypeError: ``config`` is one of `curricula.accel`.
    """
    if type(config) is not PLRConfig:
        raise TypeError(f"config={config!r} must be a PLRConfig: its other settings have no effect")

    def init(num_tasks: int) -> Levels:
        return buffers.empty(family.train, config.capacity)

    def draw(key: jax.Array, state: Levels, meta: Meta, num_tasks: int) -> tuple[Levels, Draw]:
        new_key, key = jax.random.split(key)
        new = sample_tasks(new_key, family, num_tasks, split="train")
        tasks, info = mixed(key, state, new, config)
        learns = info.replayed | config.learns_from_new
        return state, Draw(tasks, learns, info)

    def update(state: Levels, drawn: Draw, results: TaskResults) -> tuple[Levels, dict]:
        state = scored(state, drawn, results, config)
        share = jnp.mean(drawn.info.replayed.astype(float))
        return state, {"curriculum/replayed": share} | buffers.report(state)

    return Curriculum(init, draw, update, needs(config), {"name": "plr", **as_dict(config)}, family)


def needs(config: PLRConfig) -> tuple[str, ...]:
    """The fields of `TaskResults` that the buffer reads."""
    return tuple(dict.fromkeys(("best", *SCORES[config.score].needs)))


def mixed(key: jax.Array, levels: Levels, new: Task, config: PLRConfig) -> tuple[Task, Replayed]:
    """``(tasks [M], where they come from)``: each of ``new [M]``, or with the configured probability one of the buffer."""
    num_tasks = jax.tree.leaves(new)[0].shape[0]
    coin_key, draw_key = jax.random.split(key)
    num_drawn = min(num_tasks, config.capacity)
    share = jnp.mean(buffers.filled(levels).astype(float))
    probability = config.replay * (share if config.anneals else jnp.ones_like(share))
    ready = share >= config.fill
    replays = jax.random.bernoulli(coin_key, probability, (num_tasks,)) & ready
    places, valid = buffers.draw(draw_key, levels, num_drawn, config.priorities)
    # The i-th task that is replayed is the i-th draw.
    order = jnp.cumsum(replays) - 1
    within = jnp.clip(order, 0, num_drawn - 1)
    replays &= (order < num_drawn) & valid[within]
    places = places[within]
    old = jax.tree.map(lambda x: x[places], levels.tasks)
    return buffers.choose(replays, old, new), Replayed(places, replays)


def scored(levels: Levels, drawn: Draw, results: TaskResults, config: PLRConfig) -> Levels:
    """The buffer after a meta-update: replayed tasks with their new scores, and the new tasks that score high enough."""
    places, replayed = drawn.info.places, drawn.info.replayed
    before = jnp.where(replayed, levels.best[places], -jnp.inf)
    best = jnp.maximum(before, results.best)
    score = SCORES[config.score].score(results, best)
    levels = levels._replace(time=levels.time + 1)
    levels = buffers.rescored(levels, places, replayed, score, best)
    return buffers.inserted(levels, drawn.tasks, ~replayed, score, best, config.priorities)


def as_dict(config: Any) -> dict[str, Any]:
    """The settings by name."""
    return {x.name: getattr(config, x.name) for x in dataclasses.fields(config)}
