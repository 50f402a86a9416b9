"""What does the second order cost, and what does rematerialising save? Memory and time of a meta-update.

MAML on 2-D navigation with K inner steps: the intermediate values of each inner step kept for the backward
pass, or computed again (`Config.rematerialize`, the default), and first-order MAML for comparison.

    python benchmarks/second_order.py --output runs/second-order

Memory is what the compiler reserves for intermediate values; time is the median of repeated meta-updates,
taken in turns. Leaves results.json, table.md and second_order.png in the output folder.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxmeta import checks, plotting, tasks
from jaxmeta.algorithms import maml
from jaxmeta.runs import reports, training

VARIANTS: dict[str, dict[str, bool]] = {
    "kept": {"rematerialize": False},
    "rematerialised": {"rematerialize": True},
    "first order": {"first_order": True},
}


@dataclasses.dataclass(frozen=True)
class Main:
    """Memory and time of MAML's meta-update."""

    output: Path = Path("runs/second-order")
    """Folder for the results; made anew."""
    num_updates: tuple[int, ...] = (1, 3, 10)
    """Inner steps K to measure."""
    num_tasks: int = 20
    """Tasks in a meta-batch."""
    tasks_per_chunk: int | None = None
    """Tasks that are worked on at a time; None is the library's choice for this machine."""
    num_streams: int = 20
    """Episodes a task and update."""
    repeats: int = 5
    """Timed meta-updates of each."""

    def __post_init__(self) -> None:
        for name in ("num_tasks", "num_streams", "repeats"):
            checks.at_least(name, getattr(self, name), 1)
        if self.tasks_per_chunk is not None:
            checks.at_least("tasks_per_chunk", self.tasks_per_chunk, 1)
        checks.some("num_updates", self.num_updates)
        for value in self.num_updates:
            checks.at_least("num_updates", value, 1)


def compiled(
    main: Main, num_updates: int, settings: dict[str, bool]
) -> tuple[Callable, int, float]:
    """A meta-update on fixed tasks, the bytes of its intermediate values and the seconds of compilation."""
    family = tasks.make("navigation")
    config = maml.Config(
        num_streams=main.num_streams,
        num_updates=num_updates,
        tasks_per_chunk=main.tasks_per_chunk,
        **settings,
    )
    algorithm = maml.maml(family, config)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, main.num_tasks, split="train")
    began = time.perf_counter()
    step = jax.jit(algorithm.step).lower(jax.random.key(2), state, drawn).compile()
    seconds = time.perf_counter() - began
    memory = step.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(step(jax.random.key(2), state, drawn)), memory, seconds


def measure(main: Main, num_updates: int) -> dict[str, Any]:
    steps, rows = {}, {}
    for name, settings in VARIANTS.items():
        steps[name], memory, seconds = compiled(main, num_updates, settings)
        rows[name] = {"memory_bytes": memory, "compile_seconds": seconds, "seconds": []}
        steps[name]()
    for _ in range(main.repeats):
        for name, step in steps.items():  # in turns, so that a busy machine is so for all
            began = time.perf_counter()
            step()
            rows[name]["seconds"].append(time.perf_counter() - began)
    for row in rows.values():
        row["median_seconds"] = statistics.median(row["seconds"])
    return rows


def table(results: dict[int, dict[str, Any]]) -> list[str]:
    lines = [
        "| K | inner step | memory, MB | of kept | time, s | of kept |",
        "|---|---|---|---|---|---|",
    ]
    for num_updates, rows in results.items():
        kept = rows["kept"]
        for name, row in rows.items():
            memory, seconds = row["memory_bytes"], row["median_seconds"]
            lines.append(
                f"| {num_updates} | {name} | {memory / 1e6:.0f} | {memory / kept['memory_bytes']:.2f} "
                f"| {seconds:.3f} | {seconds / kept['median_seconds']:.2f} |"
            )
    return lines


def main(main: Main) -> None:
    reports.refuse_to_overwrite(main.output)
    training.enable_compilation_cache()
    results = {}
    for num_updates in main.num_updates:
        results[num_updates] = measure(main, num_updates)
        print(f"K = {num_updates} measured", file=sys.stderr, flush=True)
    reports.leave(main.output, dataclasses.asdict(main), table(results), results=results)
    plotting.second_order(main.output / "second_order.png", results)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
