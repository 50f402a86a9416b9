"""What does the second order cost, and what does rematerialising save? Memory and time of a meta-update.

MAML on 2-D navigation with K inner steps: the intermediate values of each inner step kept for the backward
pass, or computed again (`Config.rematerialize`, the default), and first-order MAML for comparison.

    python benchmarks/second_order.py --output runs/second-order

Memory is what the compiler reserves for intermediate values; time is the median of repeated meta-updates,
taken in turns.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import study

from jaxmeta import plotting, tasks
from jaxmeta.algorithms import maml

VARIANTS: dict[str, dict[str, bool]] = {
    "kept": {"rematerialize": False},
    "rematerialised": {"rematerialize": True},
    "first order": {"first_order": True},
}


class Main(study.Study):
    """Memory and time of MAML's meta-update."""

    num_updates: tuple[int, ...] = (1, 3, 10)  # Inner steps K to measure.
    num_tasks: int = 20  # Tasks in a meta-batch.
    num_streams: int = 20  # Episodes a task and update.
    repeats: int = 5  # Timed meta-updates of each.


def measure(main: Main, num_updates: int) -> dict[str, Any]:
    """Memory and times of a meta-update on fixed tasks by each variant."""
    family = tasks.make("navigation")
    sizes = dict(num_streams=main.num_streams, num_updates=num_updates)
    drawn = tasks.sample_tasks(jax.random.key(1), family, main.num_tasks, split="train")
    steps: dict[str, Callable] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, settings in VARIANTS.items():
        algorithm = maml.maml(family, maml.Config(**sizes, **settings))
        arguments = jax.random.key(2), algorithm.init(jax.random.key(0)), drawn
        program = study.compiled(algorithm.step, *arguments)
        steps[name] = partial(program.call, *arguments)
        rows[name] = {"memory_bytes": program.memory, "compile_seconds": program.seconds}
    seconds = study.in_turns(steps, main.repeats)
    for name, row in rows.items():
        row |= {"seconds": seconds[name], "median_seconds": statistics.median(seconds[name])}
    return rows


def table(results: dict[int, dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    rows = []
    for num_updates, variants in results.items():
        kept = variants["kept"]
        for name, row in variants.items():
            memory, seconds = row["memory_bytes"], row["median_seconds"]
            shares = memory / kept["memory_bytes"], seconds / kept["median_seconds"]
            sizes = f"{memory / 1e6:.0f}", f"{shares[0]:.2f}", f"{seconds:.3f}", f"{shares[1]:.2f}"
            rows.append((str(num_updates), name, *sizes))
    return study.markdown(("K", "inner step", "memory, MB", "of kept", "time, s", "of kept"), rows)


def run(main: Main) -> None:
    results = {}
    for num_updates in main.num_updates:
        results[num_updates] = measure(main, num_updates)
        study.say(f"K = {num_updates} measured")
    study.leave(main, table(results), results=results)
    plotting.second_order(main.output / "second_order.png", results)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
