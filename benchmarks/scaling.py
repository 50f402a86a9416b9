"""How do time and memory of a meta-update grow, and can its memory be known before it runs?

    python benchmarks/scaling.py --output runs/scaling

One size at a time is multiplied, all others stay: tasks, streams, horizon, inner steps, and the devices that the
tasks are shared over (simulated ones on a CPU, which tell what sharing costs and not what it brings). Each point is
a program of its own, which compiles the meta-update, says what memory the compiler has planned for it, runs it a
few times and says what memory it took: on an accelerator the allocator's peak, on a CPU (of Linux) the growth of the process.

Exponents are slopes of log time against log size over the largest three sizes: below, fixed costs hide the growth.
"""

import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import study

from jaxmeta import checks, plotting, tasks
from jaxmeta.algorithms import maml, rl2
from jaxmeta.runs import reports, training
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a meta-update."""

    tasks: int = 20
    streams: int = 20
    horizon: int = 100
    inner_steps: int = 1
    devices: int = 1


AXES = tuple(field.name for field in dataclasses.fields(Size))
ALGORITHMS = {"maml": AXES, "rl2": ("tasks", "streams", "horizon", "devices")}


class Scaling(study.Study):
    """Which sizes."""

    algorithm: Annotated[str, study.known(ALGORITHMS)] = "maml"
    """`maml` on 2-D navigation, two layers of 64; or `rl2`, a GRU of 64 on two-armed bandits."""
    axes: tuple[str, ...] = ()  # Sizes to multiply; none named is all.
    base: Size = Size()  # The sizes of all others.
    factors: tuple[int, ...] = (1, 2, 4, 8)  # By how much.
    repeats: int = 7  # Timed meta-updates of each; the median counts.
    tasks_per_chunk: int | None = None  # Tasks whose meta-gradient is worked on at a time, MAML's.
    core: study.Core = None  # The core that all is pinned to, but for devices; None pins nothing.

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis in self.axes:
            checks.choice("axes", axis, ALGORITHMS[self.algorithm])
        for axis in AXES:
            checks.at_least(axis, getattr(self.base, axis), 1)
        if len(self.factors) < 3 or sorted(set(self.factors)) != list(self.factors):
            raise ValueError(
                f"factors={self.factors} must be at least three numbers, 1 and more, that rise"
            )


def build(algorithm: str, size: Size, chunk: int | None) -> tuple[TaskFamily, MetaAlgorithm]:
    """The family of a size, and the algorithm."""
    if algorithm == "maml":
        family = tasks.make("navigation", horizon=size.horizon)
        config = maml.Config(
            num_streams=size.streams,
            num_updates=size.inner_steps,
            hidden_sizes=(64, 64),
            tasks_per_chunk=chunk,
        )
        return family, maml.maml(family, config)
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=size.horizon)
    return family, rl2.rl2(family, rl2.Config(memory_size=64, num_streams=size.streams))


def point(asked: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of one size; in a process of its own."""
    size = Size(**asked["size"])
    family, algorithm = build(asked["algorithm"], size, asked["tasks_per_chunk"])
    run = study.one(algorithm, 0)

    mesh = training.device_mesh(size.tasks)
    advance = study.advancing(algorithm, family, num_tasks=size.tasks, mesh=mesh)
    program = study.compiled(advance, run)
    planned = program.call.memory_analysis()
    # The first call brings in code and threads.
    _, metrics = jax.block_until_ready(program.call(run))
    env_steps = int(metrics["env_steps"][0])
    del metrics, _
    before = begin_peak()
    after = jax.block_until_ready(program.call(run))
    measured = peak() - before
    del after
    return {
        "env_steps": env_steps,
        "seconds": [study.timed(lambda: program.call(run))[1] for _ in range(asked["repeats"])],
        "compile_seconds": program.seconds,
        "predicted_bytes": planned.temp_size_in_bytes + planned.output_size_in_bytes,
        "measured_bytes": measured,
    }


def begin_peak() -> int:
    """Bytes in use; the peak is counted from here."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["bytes_in_use"]
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or it would not be counted again
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak()


def peak() -> int:
    """The most bytes that were in use since: of the device, or of the process."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure(main: Scaling, size: Size) -> dict[str, Any]:
    """`point` of a size, by a program that is started for it."""
    asked = {"size": dataclasses.asdict(size)}
    asked |= main.some("algorithm", "tasks_per_chunk", "repeats")
    flags = os.environ.get("XLA_FLAGS", "")
    if size.devices > 1:
        flags += f" --xla_force_host_platform_device_count={size.devices}"
    with reports.on_core(main.core if size.devices == 1 else None):
        result = subprocess.run(
            [sys.executable, __file__, "point", json.dumps(asked)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags},
        )
    if result.returncode:
        raise OSError(f"{size} failed: see above why")
    return json.loads(result.stdout.splitlines()[-1])


def sized(main: Scaling, axis: str, factor: int) -> Size:
    """The size where one axis is multiplied; devices share the tasks of the largest number of them."""
    size = dataclasses.replace(main.base, **{axis: factor * getattr(main.base, axis)})
    if axis == "devices":
        size = dataclasses.replace(size, tasks=main.base.tasks * main.factors[-1])
    return size


COLUMNS = """
    what grows = {what} | size = {grown} | env steps = {steps} | time, s = {median:.3f}
    | k env steps/s = {k_steps:.0f} | memory, MB = {megabytes:.1f}
    | predicted = {predicted:.1f} ({error:+.0f} %) | compiling, s = {compile_seconds:.1f}
"""


def shown(axis: str, factor: int, size: Size, result: dict[str, Any]) -> dict[str, Any]:
    """What the table and the figure show of a point."""
    median = statistics.median(result["seconds"])
    measured, predicted = result["measured_bytes"] / 1e6, result["predicted_bytes"] / 1e6
    shown = dict(what=axis.replace("_", " "), factor=factor, grown=getattr(size, axis))
    shown |= dict(median=median, megabytes=measured, predicted=predicted)
    shown |= dict(error=100 * (predicted / measured - 1), steps=study.spaced(result["env_steps"]))
    return result | shown | dict(k_steps=result["env_steps"] / median / 1e3)


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of slopes of logarithms over the largest three sizes; devices share work, which does not grow."""
    found = []
    for what in dict.fromkeys(row["what"] for row in rows if row["what"] != "devices"):
        largest = [row for row in rows if row["what"] == what][-3:]
        names = "grown", "median", "megabytes"
        size, *costs = (np.log([row[name] for row in largest]) for name in names)
        time, memory = (f"{np.polyfit(size, cost, 1)[0]:.2f}" for cost in costs)
        row = {"what grows": what, "exponent of time": time, "exponent of memory": memory}
        found.append(row)
    return found


def run(main: Scaling) -> None:
    rows, results = [], []
    done: dict[Size, dict[str, Any]] = {}
    for axis in main.axes or ALGORITHMS[main.algorithm]:
        for factor in main.factors:
            size = sized(main, axis, factor)
            if size not in done:
                done[size] = measure(main, size)
            results.append({"axis": axis, "size": dataclasses.asdict(size), **done[size]})
            rows.append(shown(axis, factor, size, done[size]))
            study.say(results[-1])
    table, slopes = study.table(COLUMNS, rows), exponents(rows)
    study.leave(main, table, csv=table, exponents=slopes, rows=results)
    if slopes:
        lines = reports.markdown(slopes)
        (main.output / "exponents.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))
    ys = {"time of a meta-update, s": "median", "memory, MB": "megabytes"}
    panels = study.panels(rows, "what", "factor", ys)
    path = main.output / "scaling.png"
    plotting.lines(path, panels=panels, x_label="times the size", logarithmic=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        with study.answered():
            print(json.dumps(point(json.loads(sys.argv[2]))))
    else:
        study.main({Scaling: run}, __doc__)
