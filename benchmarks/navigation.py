"""Does meta-learning pay on 2-D navigation? MAML against the same budget without meta-learning.

Both learn from the same number of environment steps on the same distribution of goals; both then take
gradient steps on the same number of episodes of 200 held-out goals. The control has no inner loop in
training (K = 0), spends the whole budget on policy gradient, and is given the best of several
fine-tuning step sizes, chosen for each number of steps on the very tasks it is measured on. All seeds run as one vmap.

    python benchmarks/navigation.py --output runs/navigation
"""

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study
from rich.console import Console

from jaxmeta import evaluation, plotting, tasks
from jaxmeta.algorithms import maml
from jaxmeta.types import MetaAlgorithm

STEP_SIZES = (0.3, 1.0, 3.0, 10.0, 30.0)


class Main(study.Study):
    """MAML against fine-tuning on 2-D navigation, the setting of Finn et al. 2017."""

    num_seeds: int = 3  # Seeds, trained at once.
    meta_updates: int = 500  # Meta-updates of MAML; the control takes the same environment steps.
    num_tasks: int = 20  # Tasks in a meta-batch.
    num_streams: int = 20  # Episodes a task and update.
    eval_tasks: int = 200  # Held-out goals.
    fine_tuning_steps: Annotated[study.Numbers, study.within(-1e6, 1e6)] = STEP_SIZES
    """Inner step sizes that the control may choose from."""


def trained(algorithm: MetaAlgorithm, family: tasks.TaskFamily, main: Main) -> study.Trained:
    """The runs of all seeds after training."""

    def show(done: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        study.say(f"  meta-update {done}: return {np.round(metrics['return/after'][:, -1], 2)}")

    runs = study.seeds(algorithm, main.num_seeds)
    train, _ = study.trainer(runs, algorithm, family, num_tasks=main.num_tasks, chunk=100)
    return train(runs, main.meta_updates, show)


def measured(
    metas: Any, algorithm: MetaAlgorithm, family: tasks.TaskFamily, main: Main, split: str
) -> dict[str, Any]:
    """The report of each seed's learner on tasks of a split."""
    task_key, key, random_key, optimal_key = jax.random.split(jax.random.key(1_000_000), 4)

    def measure(metas: Any) -> Any:
        drawn = tasks.sample_tasks(task_key, family, main.eval_tasks, split=split)
        how = dict(drawn=drawn, algorithm=algorithm, family=family, num_updates=3)
        adapted = partial(study.adapted, key, **how, num_streams=main.num_streams)
        returns = jax.vmap(adapted)(metas)
        random = evaluation.random_returns(random_key, drawn, family=family)
        return returns, random, evaluation.optimal_returns(optimal_key, drawn, family=family)

    returns, random, optimal = map(np.asarray, jax.jit(measure)(metas))
    shares = np.stack([evaluation.gap_closed(seed, optimal) for seed in returns])
    # The curve is over all seeds: each task's return is averaged over them first.
    return evaluation.summarize(returns.mean(0), random, optimal) | {
        "gap_closed": shares.mean(0).tolist(),
        "gap_closed_by_seed": shares.tolist(),
        "returns_by_seed": returns.mean(1).tolist(),
    }


def best_of(tried: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The report of the step size that earned most, for each number of gradient steps."""
    row = dict(next(iter(tried.values())))
    sizes = []
    for k in range(len(row["returns"])):
        earned = {size: x["returns"][k] for size, x in tried.items() if x["returns"][k] is not None}
        sizes.append(max(earned, key=lambda size: earned[size]))
    best = list(enumerate(sizes))
    for name in ("returns", "intervals", "interquartile_means", "gap_closed"):
        row[name] = [tried[size][name][k] for k, size in best]
    for name in ("gap_closed_by_seed", "returns_by_seed"):
        seeds = range(len(row[name]))
        row[name] = [[tried[size][name][seed][k] for k, size in best] for seed in seeds]
    return row | {"step_sizes": sizes}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    lines = []
    for name, row in rows.items():
        means = zip(row["returns"], row["intervals"], strict=True)
        cells = [study.with_interval(mean, *interval) for mean, interval in means]
        seeds = ", ".join(f"{100 * share[1]:.1f}" for share in row["gap_closed_by_seed"])
        share = f"{100 * row['gap_closed'][1]:.1f} % ({seeds})"
        lines.append((*name.split(", ", 1), *cells, share))
    steps = "0 steps", "1 step", "2 steps", "3 steps"
    names = "agent", "goals", *steps, "gap closed by 1 step (each seed)"
    reference = next(iter(rows.values()))
    references = f"random {reference['random']:.2f}, optimal {reference['optimal']:.2f}"
    return [*study.markdown(names, lines), "", references]


def run(main: Main) -> None:
    console = Console()
    family = tasks.make("navigation")
    rows: dict[str, dict[str, Any]] = {}
    seconds = {}

    console.print("MAML, one inner step")
    algorithm = maml.maml(family, maml.Config(num_streams=main.num_streams))
    learned = trained(algorithm, family, main)
    seconds["MAML"] = learned.seconds
    for split, name in study.SPLITS.items():
        rows[f"MAML, {name}"] = measured(learned.meta, algorithm, family, main, split)

    console.print("no meta-learning, then fine-tuning")
    control = maml.maml(family, maml.Config(num_streams=2 * main.num_streams, num_updates=0))
    learned = trained(control, family, main)
    seconds["control"] = learned.seconds
    for split, name in study.SPLITS.items():
        tried = {}
        for step_size in main.fine_tuning_steps:
            metas = study.with_hyper(learned.meta, step_size=jnp.full(main.num_seeds, step_size))
            tried[step_size] = measured(metas, control, family, main, split)
        rows[f"fine-tuned, {name}"] = best_of(tried)

    study.leave(main, table(rows), training_seconds=seconds, rows=rows)
    plotting.adaptation(main.output / "adaptation.png", rows)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
