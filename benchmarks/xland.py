"""Does RL² learn to learn in XLand-MiniGrid's published tasks? By the published protocol: 25 episodes in each held-out ruleset.

    python benchmarks/xland.py
    python benchmarks/xland.py --generator small --layout R4 --size 13 --meta-updates 1000

The score of an episode is `1 - 0.9 t / limit` if the goal is reached at step t, and else 0. Training has short trials. The memory lasts
through all 25 episodes of a test. Needs the package: pip install ".[xland]".
"""

import time
from typing import Annotated, Any, Literal

import jax
import numpy as np
import study

from jaxmeta import evaluation, plotting, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.evaluation import protocols
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import reports

SHOWN = (1, 2, 5, 10, 25)
"""Episodes of a test that have a column."""


class XLand(study.Study):
    """RL² on the rulesets of a published generator."""

    generator: Literal["trivial", "small", "medium", "high"] = "trivial"  # Of rulesets.
    layout: Literal["R1", "R2", "R4", "R6", "R9"] = "R1"  # The number of rooms.
    size: int = 9  # Cells along a side.
    num_rulesets: int = 4096  # For training, and as many that are held out.
    num_episodes: int = 2  # Episodes of a trial in training.
    num_tasks: int = 128  # Trials in a meta-update.
    meta_updates: int = 200  # Meta-updates, in which the step size falls to zero.
    memory_size: int = 64  # Units of the GRU.
    learning_rate: Annotated[float, study.within(1e-9, 1.0)] = 2e-3  # Step size of Adam.
    looks: int = 4  # Looks at the learner in training, beside the one before it.
    num_seeds: int = 1  # Seeds, trained one after the other.
    eval_tasks: int = 100  # Held-out rulesets.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_updates % self.looks:
            raise ValueError(
                f"meta_updates={self.meta_updates} must be a multiple of looks={self.looks}"
            )


def measure(told: XLand, seed: int) -> dict[str, Any]:
    """Mean returns by episode ``[looks + 1, 25]``, the tail of the last look, steps and seconds."""
    family = tasks.make(
        "xland",
        generator=told.generator,
        layout=told.layout,
        size=told.size,
        num_rulesets=told.num_rulesets,
    )
    # The time of a test goes far beyond the times of training, so the network does not see it.
    config = Config(
        num_episodes=told.num_episodes, encoder_sizes=(told.memory_size,), sees_time=False
    )
    hyper = Hyper(
        learning_rate=told.learning_rate,
        anneal_updates=float(told.meta_updates),
        discount=0.99,
        entropy_cost=0.01,
    )
    algorithm = rl2(family, config, hyper, memory=gru(told.memory_size))
    drawn = study.held_out(family, told.eval_tasks)

    @jax.jit
    def look(meta: Any) -> protocols.Tested:
        key = jax.random.key(study.EVALUATION_SEED + 1)
        return protocols.run_protocol(
            key,
            meta,
            drawn,
            learner=algorithm.learner,
            env=family.env,
            horizon=family.horizon,
            protocol=protocols.XLAND,
            in_context=True,
        )

    chunk = told.meta_updates // told.looks
    run = study.one(algorithm, seed)
    train, _ = study.trainer(run, algorithm, family, num_tasks=told.num_tasks, chunk=chunk)
    curve, seconds, cpu = [look(run.state.meta)], 0.0, 0.0
    for _ in range(told.looks):
        began, cpu_began = time.perf_counter(), time.process_time()
        trained = jax.block_until_ready(train(run, chunk))
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        run = trained.run
        curve.append(look(trained.meta))
        means = np.round(np.nanmean(np.asarray(curve[-1].returns), axis=0), 3)
        trial = trained.curve["return/trial"][-10:].mean()
        study.say(
            f"seed {seed}: {seconds:.0f} s, in training {trial:.3f}, {means[[i - 1 for i in SHOWN]]}"
        )
    steps = told.meta_updates * int(trained.curve["env_steps"][0])
    returns = [np.asarray(x.returns) for x in curve]
    trials = evaluation.tail_summary(np.mean(returns[-1], axis=1))
    return {
        "curve": [np.nanmean(x, axis=0).tolist() for x in returns],
        "first": evaluation.tail_summary(returns[-1][:, 0]),
        "trials": trials,
        "before": evaluation.tail_summary(np.mean(returns[0], axis=1)),
        "solved": protocols.success_rate(curve[-1]),
        "env_steps": steps,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def row(seed: int, found: dict[str, Any]) -> dict[str, str]:
    """A run's row of the table."""
    by_episode = found["curve"][-1]
    return {
        "seed": str(seed),
        **{f"episode {i}": f"{by_episode[i - 1]:.3f}" for i in SHOWN},
        "mean of 25": f"{found['trials']['mean']:.3f}",
        "20th percentile": f"{found['trials']['percentile_20']:.3f}",
        "untrained, mean of 25": f"{found['before']['mean']:.3f}",
        "steps": study.spaced(found["env_steps"]),
        "training, s": f"{found['seconds']:.0f}",
        "CPU s": f"{found['cpu_seconds']:.0f}",
        "steps/CPU s": study.spaced(round(found["env_steps"] / found["cpu_seconds"])),
    }


def run_xland(told: XLand) -> None:
    """Training and the test of every seed."""
    runs = {seed: measure(told, seed) for seed in range(told.num_seeds)}
    table = [row(seed, found) for seed, found in runs.items()]
    study.leave(told, table, csv=table, runs=runs, machine=reports.machine())
    lines = {}
    for look in range(told.looks + 1):
        means = np.mean([found["curve"][look] for found in runs.values()], axis=0)
        steps = look * next(iter(runs.values()))["env_steps"] // told.looks
        lines[f"{study.spaced(steps)} steps"] = (
            list(range(1, protocols.XLAND.tests + 1)),
            means.tolist(),
        )
    panel = {f"{told.generator}, {told.layout}-{told.size}x{told.size}": lines}
    plotting.lines(told.output / "returns.png", panel, x_label="episode")


if __name__ == "__main__":
    study.main({XLand: run_xland}, __doc__)
