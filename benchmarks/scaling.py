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


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over the largest three sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0])


def sized(main: Scaling, axis: str, factor: int) -> Size:
    """The size where one axis is multiplied; devices share the tasks of the largest number of them."""
    size = dataclasses.replace(main.base, **{axis: factor * getattr(main.base, axis)})
    if axis == "devices":
        size = dataclasses.replace(size, tasks=main.base.tasks * main.factors[-1])
    return size


def shown(axis: str, size: Size, result: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    median = statistics.median(result["seconds"])
    error = result["predicted_bytes"] / result["measured_bytes"] - 1
    return {
        "what grows": axis.replace("_", " "),
        "size": str(getattr(size, axis)),
        "env steps": study.spaced(result["env_steps"]),
        "time, s": f"{median:.3f}",
        "k env steps/s": f"{result['env_steps'] / median / 1e3:.0f}",
        "memory, MB": f"{result['measured_bytes'] / 1e6:.1f}",
        "predicted": f"{result['predicted_bytes'] / 1e6:.1f} ({100 * error:+.0f} %)",
        "compiling, s": f"{result['compile_seconds']:.1f}",
    }


def run(main: Scaling) -> None:
    rows, exponents, results = [], [], []
    panels: dict[str, dict] = {"time of a meta-update, s": {}, "memory, MB": {}}
    done: dict[Size, dict[str, Any]] = {}
    for axis in main.axes or ALGORITHMS[main.algorithm]:
        name = axis.replace("_", " ")
        sizes = [sized(main, axis, factor) for factor in main.factors]
        for size in sizes:
            if size not in done:
                done[size] = measure(main, size)
            rows.append(shown(axis, size, done[size]))
            results.append({"axis": axis, "size": dataclasses.asdict(size), **done[size]})
            study.say(rows[-1])
        grown = [getattr(size, axis) for size in sizes]
        seconds = [statistics.median(done[size]["seconds"]) for size in sizes]
        megabytes = [done[size]["measured_bytes"] / 1e6 for size in sizes]
        if axis != "devices":
            slopes = (f"{exponent(grown, x):.2f}" for x in (seconds, megabytes))
            names = "what grows", "exponent of time", "exponent of memory"
            exponents.append(dict(zip(names, (name, *slopes), strict=True)))
        for panel, y in zip(panels.values(), (seconds, megabytes), strict=True):
            panel[name] = (main.factors, y)
    study.leave(main, rows, csv=rows, exponents=exponents, rows=results)
    if exponents:
        lines = reports.markdown(exponents)
        (main.output / "exponents.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))
    path = main.output / "scaling.png"
    plotting.lines(path, panels=panels, x_label="times the size", logarithmic=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        with study.answered():
            print(json.dumps(point(json.loads(sys.argv[2]))))
    else:
        study.main({Scaling: run}, __doc__)
