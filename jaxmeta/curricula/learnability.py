"""Sampling for learnability: draw tasks that the agent solves sometimes.

Rutherford et al. 2024, "No regrets: investigating and improving regret approximations for curriculum discovery". Every few
meta-updates the agent tries many new tasks. Those with the highest ``p (1 - p)`` are kept, where p is the share of solved
episodes. A share of each batch is drawn from the kept tasks, and the rest are new tasks. The agent learns from all.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.curricula import scores
from jaxmeta.curricula.levels import choose
from jaxmeta.curricula.replay import as_dict
from jaxmeta.evaluation.trials import episode_returns, trials
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import Curriculum, Draw, Meta, MetaAlgorithm, Task, TaskResults


@dataclasses.dataclass(frozen=True)
class SFLConfig:
    """Settings of sampling for learnability."""

    candidates: int = 5000
    """New tasks to try."""
    keeps: int = 1000
    """Tasks to keep, those with the highest ``p (1 - p)``."""
    every: int = 100
    """Meta-updates between two tries."""
    trials: int = 1
    """Trials of each task in a try."""
    share: float = 0.5
    """The share of a batch that is drawn from the kept tasks, rounded."""
    threshold: float = 0.0
    """An episode is solved if its return is above this."""
    tasks_per_chunk: int = 1000
    """Tasks tried at a time; bounds memory."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("candidates", "keeps", "every", "trials", "tasks_per_chunk"):
            checks.at_least(name, getattr(self, name), 1)
        checks.between("share", self.share, 0, 1)
        if self.keeps > self.candidates:
            raise ValueError(
                f"keeps={self.keeps} must be at most candidates={self.candidates}, from which they are chosen"
            )


class Kept(NamedTuple):
    """The tasks that are kept."""

    tasks: Task
    """``[keeps]``."""
    learnability: jax.Array
    """``[keeps]``, their ``p (1 - p)`` when they were tried."""
    time: jax.Array
    """``[]``, int32: meta-updates so far."""


@checks.arguments
def sfl(
    algorithm: MetaAlgorithm, family: TaskFamily, config: SFLConfig = SFLConfig()
) -> Curriculum:
    """Sampling for learnability with an algorithm whose agents learn within a trial, such as RL².

    Tries are steps of the environment that a meta-update's ``env_steps`` counts. `training.train_population` tries in every
    meta-update, because its members share a program, so it is slow there.

    Args:
        algorithm: The algorithm that is trained; its learner tries the tasks.
        family: The family whose training tasks are drawn.
        config: How many tasks are tried, how often, and how many are kept.

    Raises:
        ValueError: the algorithm's agents do not learn within a trial, or its trials are of another horizon; a try takes more
            steps than an int32 holds; in training, ``config.share`` of a batch is less than half a task.
    """
    lifetime = algorithm.lifetime
    if lifetime is None or not lifetime.trial:
        raise ValueError(
            "sfl needs an algorithm whose agents learn within a trial, with lifetime.trial: rl2, varibad, recurrent_q"
        )
    num_steps, num_episodes = lifetime.num_steps, lifetime.num_steps // family.horizon
    if num_steps % family.horizon:
        raise ValueError(
            f"algorithm has trials of {num_steps} steps, which is no multiple of horizon={family.horizon} of "
            f"family={family.name!r}: make it for that family"
        )
    steps = checks.at_least(
        "candidates × trials × steps of a trial", config.candidates * config.trials * num_steps, 1
    )

    def tried(key: jax.Array, state: Kept, meta: Meta) -> Kept:
        new_key, key = jax.random.split(key)
        new = sample_tasks(new_key, family, config.candidates, split="train")
        copies = jax.tree.map(lambda x: jnp.repeat(x, config.trials, axis=0), new)
        how = dict(num_steps=num_steps, tasks_per_chunk=config.tasks_per_chunk)
        lived = trials(key, meta, copies, learner=algorithm.learner, env=family.env, **how)
        episodes = episode_returns(lived, num_episodes)
        episodes = episodes.reshape(config.candidates, -1)
        p = scores.solved_share(episodes, config.threshold)
        value = jnp.where(jnp.isnan(p), -1.0, scores.learnable(p))
        best, places = jax.lax.top_k(value, config.keeps)
        return Kept(jax.tree.map(lambda x: x[places], new), best, state.time)

    def init(num_tasks: int) -> Kept:
        if config.share > 0 and round(config.share * num_tasks) == 0:
            raise ValueError(
                f"share={config.share} of num_tasks={num_tasks} is no task: no kept task would be drawn"
            )
        one = jax.eval_shape(family.train, jax.random.key(0))
        tasks = jax.tree.map(lambda x: jnp.zeros((config.keeps, *x.shape), x.dtype), one)
        return Kept(tasks, jnp.zeros(config.keeps), jnp.zeros((), jnp.int32))

    def draw(key: jax.Array, state: Kept, meta: Meta, num_tasks: int) -> tuple[Kept, Draw]:
        try_key, new_key, key = jax.random.split(key, 3)
        tries = state.time % config.every == 0
        state = jax.lax.cond(tries, tried, lambda key, state, meta: state, try_key, state, meta)
        new = sample_tasks(new_key, family, num_tasks, split="train")
        places = jax.random.randint(key, (num_tasks,), 0, config.keeps)
        from_kept = jnp.arange(num_tasks) < round(config.share * num_tasks)
        kept = jax.tree.map(lambda x: x[places], state.tasks)
        return state, Draw(choose(from_kept, kept, new), jnp.ones(num_tasks, bool), tries)

    def update(state: Kept, drawn: Draw, results: TaskResults) -> tuple[Kept, dict]:
        metrics = {
            "curriculum/learnability": jnp.mean(state.learnability),
            "env_steps": jnp.where(drawn.info, steps, 0).astype(jnp.int32),
        }
        return state._replace(time=state.time + 1), metrics

    return Curriculum(init, draw, update, (), {"name": "sfl", **as_dict(config)}, family)
