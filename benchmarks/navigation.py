"""Does meta-learning pay on 2-D navigation? MAML against the same budget without meta-learning.

Both learn from the same number of environment steps on the same distribution of goals; both then take
gradient steps on the same number of episodes of 200 held-out goals. The control has no inner loop in
training (K = 0), spends the whole budget on policy gradient, and is given the best of several
fine-tuning step sizes, chosen for each number of steps on the very tasks it is measured on. All seeds run as one vmap.

    python benchmarks/navigation.py --output runs/navigation

Leaves results.json, table.md and adaptation.png in the output folder.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxmeta import checks, evaluation, plotting, tasks
from jaxmeta.algorithms import maml
from jaxmeta.runs import reports, training
from jaxmeta.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True)
class Main:
    """MAML against fine-tuning on 2-D navigation, the setting of Finn et al. 2017."""

    output: Path = Path("runs/navigation")
    """Folder for the results; made anew."""
    num_seeds: int = 3
    """Seeds, trained at once."""
    meta_updates: int = 500
    """Meta-updates of MAML; the control takes the same environment steps."""
    num_tasks: int = 20
    """Tasks in a meta-batch."""
    num_streams: int = 20
    """Episodes a task and update."""
    eval_tasks: int = 200
    """Held-out goals."""
    fine_tuning_steps: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    """Inner step sizes that the control may choose from."""

    def __post_init__(self) -> None:
        for name in ("num_seeds", "meta_updates", "num_tasks", "num_streams"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("eval_tasks", self.eval_tasks, 2)
        checks.some("fine_tuning_steps", self.fine_tuning_steps)
        for value in self.fine_tuning_steps:
            checks.between("fine_tuning_steps", value, -1e6, 1e6)


def train_seeds(
    algorithm: MetaAlgorithm, family: tasks.TaskFamily, main: Main
) -> tuple[training.Run, float]:
    """The runs ``[S]`` after training, and the seconds it took without compiling."""
    keys = jax.vmap(jax.random.key)(jnp.arange(main.num_seeds))
    runs = jax.jit(jax.vmap(lambda key: training.begin(key, algorithm=algorithm)))(keys)

    def advance(run: training.Run, count: jax.Array) -> tuple[training.Run, dict]:
        return training.advance(
            run, count, algorithm=algorithm, family=family, num_tasks=main.num_tasks
        )

    count = jnp.zeros((), jnp.int32)
    call = jax.jit(jax.vmap(advance, in_axes=(0, None)), donate_argnums=0)
    compiled = call.lower(runs, count).compile()
    began = time.perf_counter()
    done = 0
    while done < main.meta_updates:
        now = min(training.MAX_UPDATES_PER_CALL, main.meta_updates - done)
        runs, rows = compiled(runs, count + now)
        done += now
        after = np.asarray(rows["return/after"])[:, now - 1]
        print(f"  meta-update {done}: return {np.round(after, 2)}", file=sys.stderr, flush=True)
    return runs, time.perf_counter() - began


def adaptation_returns(
    metas: Any, algorithm: MetaAlgorithm, family: tasks.TaskFamily, main: Main, split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ``[S, M, 4]`` of each seed's learner on tasks of a split, random's and the optimum's ``[M]``."""
    task_key, key, random_key, optimal_key = jax.random.split(jax.random.key(1_000_000), 4)

    def measure(metas: Any) -> Any:
        drawn = tasks.sample_tasks(task_key, family, main.eval_tasks, split=split)
        returns = jax.vmap(
            lambda meta: evaluation.adaptation_returns(
                key,
                meta,
                drawn,
                learner=algorithm.learner,
                env=family.env,
                num_streams=main.num_streams,
                num_updates=3,
                num_steps=family.horizon,
            )
        )(metas)
        random = evaluation.random_returns(random_key, drawn, family=family)
        return returns, random, evaluation.optimal_returns(optimal_key, drawn, family=family)

    returns, random, optimal = jax.device_get(jax.jit(measure)(metas))
    return np.asarray(returns), np.asarray(random), np.asarray(optimal)


def report(returns: np.ndarray, random: np.ndarray, optimal: np.ndarray) -> dict[str, Any]:
    """The curve over all seeds (each task's return averaged over seeds first), and each seed's shares."""
    shares = np.stack([evaluation.gap_closed(seed, optimal) for seed in returns])
    summary = evaluation.summarize(returns.mean(0), random, optimal)
    return summary | {
        "gap_closed": shares.mean(0).tolist(),
        "gap_closed_by_seed": shares.tolist(),
        "returns_by_seed": returns.mean(1).tolist(),
    }


def best_of(tried: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """For each number of gradient steps, the report of the step size that earned most."""
    row = dict(next(iter(tried.values())))
    row["step_sizes"] = []
    columns = ("returns", "intervals", "interquartile_means", "gap_closed")
    for k in range(len(row["returns"])):
        finite = {size: x for size, x in tried.items() if x["returns"][k] is not None}
        size = max(finite, key=lambda size: finite[size]["returns"][k])
        row["step_sizes"].append(size)
        for name in columns:
            row[name] = [*row[name][:k], finite[size][name][k], *row[name][k + 1 :]]
        for name in ("gap_closed_by_seed", "returns_by_seed"):
            row[name] = [
                [*ours[:k], theirs[k], *ours[k + 1 :]]
                for ours, theirs in zip(row[name], finite[size][name], strict=True)
            ]
    return row


def table(rows: dict[str, dict[str, Any]]) -> Sequence[str]:
    lines = [
        "| agent | goals | 0 steps | 1 step | 2 steps | 3 steps | gap closed by 1 step (each seed) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [
            f"{mean:.2f} ({low:.2f}, {high:.2f})"
            for mean, (low, high) in zip(row["returns"], row["intervals"], strict=True)
        ]
        seeds = ", ".join(f"{100 * share[1]:.1f}" for share in row["gap_closed_by_seed"])
        share = f"{100 * row['gap_closed'][1]:.1f} % ({seeds})"
        agent, goals = name.split(", ", 1)
        lines.append(f"| {agent} | {goals} | {' | '.join(cells)} | {share} |")
    return lines


def main(main: Main) -> None:
    reports.refuse_to_overwrite(main.output)
    training.enable_compilation_cache()
    console = Console()
    family = tasks.make("navigation")
    rows: dict[str, dict[str, Any]] = {}
    seconds = {}

    console.print("MAML, one inner step")
    algorithm = maml.maml(family, maml.Config(num_streams=main.num_streams))
    runs, seconds["MAML"] = train_seeds(algorithm, family, main)
    for split, name in (("test", "held-out"), ("out_of_distribution", "out of distribution")):
        measured = adaptation_returns(runs.state.meta, algorithm, family, main, split)
        rows[f"MAML, {name}"] = report(*measured)

    console.print("no meta-learning, then fine-tuning")
    control = maml.maml(family, maml.Config(num_streams=2 * main.num_streams, num_updates=0))
    runs, seconds["control"] = train_seeds(control, family, main)
    for split, name in (("test", "held-out"), ("out_of_distribution", "out of distribution")):
        tried = {}
        for step_size in main.fine_tuning_steps:
            sizes = jnp.full(main.num_seeds, step_size)
            metas = runs.state.meta
            metas = metas._replace(hyper=metas.hyper._replace(step_size=sizes))
            measured = adaptation_returns(metas, control, family, main, split)
            tried[step_size] = report(*measured)
        rows[f"fine-tuned, {name}"] = best_of(tried)

    lines = table(rows)
    reference = next(iter(rows.values()))
    lines = [*lines, "", f"random {reference['random']:.2f}, optimal {reference['optimal']:.2f}"]
    reports.leave(main.output, dataclasses.asdict(main), lines, training_seconds=seconds, rows=rows)
    plotting.adaptation(main.output / "adaptation.png", rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
