"""Do curricula help on the worst held-out tasks? Against independent training tasks, at equal environment steps.

    python benchmarks/curricula.py mazes      # RL² in mazes: replay, ACCEL, sampling for learnability
    python benchmarks/curricula.py xland      # the same in XLand-MiniGrid, which needs pip install ".[xland]"
    python benchmarks/curricula.py physics    # RL² on CartPole with drawn physics: RoML
    python benchmarks/curricula.py overhead   # seconds of a meta-update with each curriculum, in turns

The worst tasks are found by one set of trials and measured by another, so that noise does not choose them.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import curricula, evaluation, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.curricula import scores
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import Curriculum, MetaAlgorithm, Task

METHODS = ("none", "plr", "robust_plr", "accel", "learnability")


class Levels(study.Study):
    """RL² with and without curricula on tasks whose episodes are solved or not."""

    methods: Annotated[study.Names, study.known(METHODS)] = (
        METHODS  # Curricula; none is the control.
    )
    num_episodes: int = 2  # Episodes of a trial.
    env_steps: int = 1_500_000  # Environment steps of a run; the steps of its curriculum count.
    num_tasks: Annotated[int, study.multiple_of(4)] = 64  # Tasks in a meta-update.
    num_seeds: int = 1  # Seeds.
    memory_size: int = 64  # Width of the GRU.
    capacity: int = 512  # Tasks in the buffers.
    score: Annotated[str, study.known(scores.SCORES)] = "max_monte_carlo"  # The score of replay.
    eval_tasks: int = 500  # Held-out tasks.
    eval_trials: int = 20  # Trials in each, twice.


class Mazes(Levels):
    """Mazes whose goal is unseen; an episode is solved if the goal is reached once."""

    size: int = 7  # Cells along a side.
    horizon: int = 30  # Steps of an episode.
    unsolvable: Annotated[float, study.within(0, 1)] = 0.0
    """Share of the training mazes whose goal cannot be reached; held-out mazes are all solvable."""

    def agent(self) -> tuple[TaskFamily, MetaAlgorithm]:
        """The mazes and RL² on them."""
        return maze_agent(self, self.unsolvable)


class XLand(Levels):
    """Rulesets of a published generator; an episode is solved if its goal is reached."""

    generator: Literal["trivial", "small", "medium", "high"] = "small"  # Of rulesets.
    layout: Literal["R1", "R2", "R4", "R6", "R9"] = "R1"  # The number of rooms.
    size: int = 9  # Cells along a side.
    num_rulesets: int = 16384  # For training, and as many that are held out.

    def agent(self) -> tuple[TaskFamily, MetaAlgorithm]:
        """The rulesets, and RL² with the settings of `xland.py`."""
        where = dict(generator=self.generator, layout=self.layout, size=self.size)
        family = tasks.make("xland", num_rulesets=self.num_rulesets, **where)
        encoder = dict(encoder_sizes=(self.memory_size,), sees_time=False)
        config = Config(num_episodes=self.num_episodes, **encoder)
        hyper = Hyper(learning_rate=2e-3, discount=0.99, entropy_cost=0.01)
        return family, rl2(family, config, hyper, memory=gru(self.memory_size))


class Physics(study.Study):
    """CartPole with gravity, masses, length and force drawn per task."""

    scale: Annotated[float, study.within(1, 10)] = 3.0  # Factors are between 1 / scale and scale.
    horizon: int = 100  # Steps of an episode.
    meta_updates: int = 300  # Meta-updates.
    num_tasks: Annotated[int, study.multiple_of(4)] = 128  # Tasks in a meta-update.
    num_seeds: int = 1  # Seeds.
    memory_size: int = 32  # Width of the GRU.
    alpha: Annotated[float, study.within(0.001, 1)] = 0.05  # RoML's share of the worst tasks.
    eval_tasks: int = 2000  # Held-out tasks.
    eval_trials: int = 5  # Trials in each, twice.


class Overhead(study.Study):
    """The programs of `Mazes`."""

    size: int = 7  # Cells along a side.
    horizon: int = 30  # Steps of an episode.
    num_episodes: int = 2  # Episodes of a trial.
    num_tasks: Annotated[int, study.multiple_of(4)] = 64  # Tasks in a meta-update.
    memory_size: int = 64  # Width of the GRU.
    capacity: int = 4000  # Tasks in the buffers.
    updates: int = 50  # Meta-updates of a call, between two tries of `learnability`.
    repeats: int = 7  # Calls of each program.


def maze_agent(told: Any, unsolvable: float = 0.0) -> tuple[TaskFamily, MetaAlgorithm]:
    """The mazes and RL² on them."""
    family = tasks.make("maze", size=told.size, horizon=told.horizon, unsolvable=unsolvable)
    config = Config(num_episodes=told.num_episodes, num_minibatches=4)
    hyper = Hyper(learning_rate=1e-3, discount=0.97)
    return family, rl2(family, config, hyper, memory=gru(told.memory_size))


def curriculum_of(
    name: str,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    capacity: int,
    score: Any = "max_monte_carlo",
) -> Curriculum | None:
    """A curriculum by its name."""
    if name == "none":
        return None
    if name == "accel":
        return curricula.accel(family, curricula.ACCELConfig(capacity=capacity))
    if name == "learnability":
        config = curricula.SFLConfig(candidates=2 * capacity, keeps=capacity, every=50)
        return curricula.sfl(algorithm, family, config)
    learns_from_new = name == "plr"
    config = curricula.PLRConfig(capacity=capacity, score=score, learns_from_new=learns_from_new)
    return curricula.plr(family, config)


def trained(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    curriculum: Curriculum | None,
    plan: training.Config,
) -> tuple[Any, dict[str, Any]]:
    """``(meta, report)`` of a run."""
    lines: list[dict] = []
    began, cpu = time.perf_counter(), time.process_time()
    run = training.train(algorithm, family, plan, curriculum=curriculum, sink=lines.append)
    report = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "env_steps": sum(line["env_steps"] for line in lines),
        "meta_updates": plan.meta_updates,
        "last": {k: x for k, x in lines[-1].items() if k.startswith("curriculum/")},
    }
    return run.state.meta, report


def updates_within(told: Levels, algorithm: MetaAlgorithm, curriculum: Curriculum | None) -> int:
    """The meta-updates that take ``told.env_steps``; the steps of the curriculum's own tries count."""
    assert algorithm.lifetime is not None
    one = told.num_tasks * algorithm.lifetime.num_steps
    if curriculum is None or curriculum.description["name"] != "sfl":
        return max(1, told.env_steps // one)
    config = curriculum.description
    tries = config["candidates"] * config["trials"] * algorithm.lifetime.num_steps
    cycle = config["every"] * one + tries
    cycles, rest = divmod(told.env_steps, cycle)
    return max(1, cycles * config["every"] + max(0, rest - tries) // one)


def measured(
    algorithm: MetaAlgorithm, family: TaskFamily, meta: Any, drawn: Task, num_trials: int
) -> np.ndarray:
    """Returns of the episodes of two sets of trials in each task, ``[2, M, trials, E]``."""
    lifetime = algorithm.lifetime
    assert lifetime is not None
    num_episodes = lifetime.num_steps // family.horizon
    many = jax.tree.map(lambda x: jnp.repeat(x, num_trials, axis=0), drawn)

    def measure(key: jax.Array, meta: Any) -> jax.Array:
        how = dict(learner=algorithm.learner, env=family.env, num_steps=lifetime.num_steps)
        lived = evaluation.trials(key, meta, many, **how)
        return evaluation.episode_returns(lived, num_episodes)

    call = jax.jit(measure)
    keys = jax.random.split(jax.random.key(study.EVALUATION_SEED))
    both = [np.asarray(call(key, meta)).reshape(-1, num_trials, num_episodes) for key in keys]
    return np.stack(both)


def tails(ranked: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """The mean and the means of the worst tasks, ``[M]`` each."""
    shares = {f"CVaR {100 * share:.0f} %": share for share in (0.1, 0.05, 0.01)}
    return {"mean": float(np.nanmean(x))} | {
        name: evaluation.cvar(x, share, ranked_by=ranked) for name, share in shares.items()
    }


def row(name: str, found: list[dict[str, float]], reports: list[dict[str, Any]]) -> tuple:
    """A row of a table: means over seeds."""
    means = {k: np.mean([x[k] for x in found]) for k in found[0]}
    steps = np.mean([x["env_steps"] for x in reports])
    seconds = np.mean([x["cpu_seconds"] for x in reports])
    return (name, *(f"{x:.3f}" for x in means.values()), f"{steps:,.0f}", f"{seconds:.0f}")


def levels(told: Mazes | XLand) -> None:
    """Shares of solved episodes in held-out tasks."""
    family, algorithm = told.agent()
    drawn = study.held_out(family, told.eval_tasks)
    rows, kept = [], {}
    for name in told.methods:
        found, reports = [], []
        for seed in range(told.num_seeds):
            curriculum = curriculum_of(name, algorithm, family, told.capacity, told.score)
            plan = training.Config(
                meta_updates=updates_within(told, algorithm, curriculum),
                num_tasks=told.num_tasks,
                seed=seed,
            )
            meta, report = trained(algorithm, family, curriculum, plan)
            episodes = measured(algorithm, family, meta, drawn, told.eval_trials)
            rates = [evaluation.solve_rate(x[..., -1]) for x in episodes]
            found.append({"return": float(episodes[1, ..., -1].mean())} | tails(*rates))
            reports.append(report)
            study.say(f"{name}, seed {seed}: {found[-1]} {report}")
        rows.append(row(name, found, reports))
        kept[name] = {"scores": found, "runs": reports}
    names = "curriculum", "return, last episode", "solved, mean"
    names += tuple(f"solved, {x}" for x in list(found[0])[2:])
    table = study.markdown((*names, "environment steps", "CPU s"), rows)
    study.leave(told, table, methods=kept)


def physics(told: Physics) -> None:
    """Returns on held-out CartPoles."""
    family = tasks.make("cartpole", horizon=told.horizon, scale=told.scale)
    hyper = Hyper(learning_rate=2e-3)
    algorithm = rl2(family, Config(num_minibatches=4), hyper, memory=gru(told.memory_size))
    drawn = study.held_out(family, told.eval_tasks)
    config = curricula.RoMLConfig(alpha=told.alpha, batch=told.num_tasks)
    rows, kept = [], {}
    methods = {"none": None, "roml": curricula.roml(family, config)}
    for name, curriculum in methods.items():
        found, reports = [], []
        for seed in range(told.num_seeds):
            plan = training.Config(
                meta_updates=told.meta_updates, num_tasks=told.num_tasks, seed=seed
            )
            meta, report = trained(algorithm, family, curriculum, plan)
            episodes = measured(algorithm, family, meta, drawn, told.eval_trials)
            found.append(tails(*(x[..., 0].mean(axis=1) for x in episodes)))
            reports.append(report)
            study.say(f"{name}, seed {seed}: {found[-1]} {report}")
        rows.append(row(name, found, reports))
        kept[name] = {"scores": found, "runs": reports}
    names = "curriculum", *(f"return, {x}" for x in found[0]), "environment steps", "CPU s"
    study.leave(told, study.markdown(names, rows), methods=kept)


def overhead(told: Overhead) -> None:
    """Time of a meta-update with each curriculum, in turns, and its ratio to the control's.

    CPU time counts all threads; on a busy machine it is the one to look at.
    """
    family, algorithm = maze_agent(told)
    calls: dict[str, Callable[[], Any]] = {}
    for name in METHODS:
        curriculum = curriculum_of(name, algorithm, family, told.capacity)
        taught = dict(curriculum=curriculum, num_tasks=told.num_tasks)
        run = jax.jit(
            lambda how=taught: training.begin(jax.random.key(0), algorithm=algorithm, **how)
        )()
        advance = study.advancing(algorithm, family, most=told.updates, **taught)
        program = study.compiled(advance, run, jnp.asarray(told.updates))
        calls[name] = lambda call=program.call, run=run: call(run, jnp.asarray(told.updates))
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(told.repeats):
        for name, call in calls.items():
            began = time.process_time()
            _, seconds = study.timed(call)
            spent[name].append((seconds, time.process_time() - began))
    rows = []
    for name, each in spent.items():
        ratios = np.median(np.array(each) / np.array(spent["none"]), axis=0)
        cells = np.median(np.array(each), axis=0) * 1000 / told.updates
        rows.append((name, *(f"{x:.1f}" for x in cells), *(f"{x:.3f}" for x in ratios)))
    names = "curriculum", "a meta-update, ms", "CPU ms", "ratio to none, median of turns"
    study.leave(told, study.markdown((*names, "of CPU ms"), rows), seconds=spent)


if __name__ == "__main__":
    study.main({Mazes: levels, XLand: levels, Physics: physics, Overhead: overhead}, __doc__)
