"""Does a run survive being killed, does a long one stay what it was, and what do broken numbers cost?

    python benchmarks/endurance.py kill --kills 100
    python benchmarks/endurance.py long --meta-updates 100000
    python benchmarks/endurance.py faults --rates 0 0.001 0.01

`kill` trains by `benchmarks/train.py` and ends the process with SIGKILL at random moments, most of them after
training has begun, checkpoints every few updates among them; each time `--resume` goes on. A kill may cost
what was done since the last checkpoint and nothing else; what is learned in the end is compared, bit by bit, with a run that was left
alone. `long` makes very many small meta-updates and looks at host memory, compilations, the time of an update and the
metrics file. `faults` meta-trains MAML on 2-D navigation whose simulator reports NaN or infinity now and then, and
looks at what was left out and how the result adapts to held-out goals without faults.

Leaves results.json, table.md and the runs in the output folder.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console

from jaxmeta import checks, evaluation, tasks
from jaxmeta.algorithms import maml
from jaxmeta.runs import checkpoints, experiments, reports, training
from jaxmeta.runs.experiments import Experiment
from jaxmeta.tasks import transform

TRAIN = Path(__file__).parent / "train.py"


@dataclasses.dataclass(frozen=True)
class Kill:
    """Kill a training run again and again."""

    output: Path = Path("runs/endurance-kill")
    """Folder for the results; made anew."""
    kills: int = 100
    """How often."""
    checkpoint_every: int = 5
    """Meta-updates between checkpoints."""
    seed: int = 0
    """Of the moments."""

    def __post_init__(self) -> None:
        checks.at_least("kills", self.kills, 1)
        checks.at_least("checkpoint_every", self.checkpoint_every, 1)


@dataclasses.dataclass(frozen=True)
class Long:
    """Very many small meta-updates."""

    output: Path = Path("runs/endurance-long")
    """Folder for the results; made anew."""
    meta_updates: int = 100_000
    """How many."""

    def __post_init__(self) -> None:
        checks.at_least("meta_updates", self.meta_updates, 10)


@dataclasses.dataclass(frozen=True)
class Faults:
    """A simulator that breaks now and then."""

    output: Path = Path("runs/endurance-faults")
    """Folder for the results; made anew."""
    rates: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    """Shares of steps whose reward or observation is not finite."""
    meta_updates: int = 200
    """Meta-updates of each run."""
    num_tasks: int = 20
    """Tasks in each."""
    eval_tasks: int = 200
    """Held-out tasks."""
    seed: int = 0
    """Of training."""

    def __post_init__(self) -> None:
        checks.some("rates", self.rates)
        for rate in self.rates:
            checks.between("rates", rate, 0, 1)
        for name in ("meta_updates", "num_tasks"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("eval_tasks", self.eval_tasks, 2)
        checks.at_least("seed", self.seed, 0)


def command(folder: Path, meta_updates: int, checkpoint_every: int, *, resume: bool) -> list[str]:
    settings = {
        "meta-updates": meta_updates,
        "checkpoint-every": checkpoint_every,
        "num-tasks": 2,
        "num-streams": 4,
        "hidden-sizes": 16,
        "task.horizon": 20,
        "report-seconds": 0,  # every update is looked at, so that a kill can fall between any two
        "eval-tasks": 2,
        "output": folder,
    }
    told = [f"--{name}={x}" for name, x in settings.items()]
    return [sys.executable, str(TRAIN), *told, *(["--resume"] if resume else [])]


def lines(folder: Path) -> int:
    """Whole lines of a run's metrics."""
    path = folder / training.METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest(folder: Path) -> int | None:
    """The last finished checkpoint, as a resumed run will find it."""
    path = folder / training.CHECKPOINT_FOLDER
    if not path.exists():
        return None
    with checkpoints.open_manager(path) as manager:
        return manager.latest_step()


def kill_once(folder: Path, args: list[str], moment: random.Random) -> dict[str, Any]:
    """Start, wait, kill: what had been done and what of it was kept."""
    before = lines(folder)
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    early = moment.random() < 0.1
    if early:  # while it starts, reads its checkpoint or compiles
        time.sleep(moment.uniform(0.0, 6.0))
    else:
        while process.poll() is None and lines(folder) in (before, 0):
            time.sleep(0.002)
            before = min(
                before, lines(folder) or before
            )  # resuming cuts what came after the checkpoint
        time.sleep(moment.uniform(0.0, 1.5))
    ended = process.poll()
    process.kill()
    _, error = process.communicate()
    if ended is not None:
        raise RuntimeError(f"the run ended by itself with {ended}: {error.decode()[-2000:]}")
    done, kept = lines(folder), newest(folder)
    return {"early": early, "done": done, "kept": kept}


def run_kill(args: Kill) -> tuple[list[dict[str, str]], dict[str, Any]]:
    moment, folder = random.Random(args.seed), args.output / "killed"
    kills: list[dict[str, Any]] = []
    while len(kills) < args.kills:
        resume = newest(folder) is not None if folder.exists() else False
        if not resume and folder.exists():  # killed before it had anything to resume from
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        endless = command(folder, 10**6, args.checkpoint_every, resume=resume)
        kills.append(kill_once(folder, endless, moment))
        print(f"kill {len(kills)}: {kills[-1]}", file=sys.stderr, flush=True)
    kept = newest(folder) or 0
    total = kept + 2 * args.checkpoint_every
    for where, resume in ((folder, True), (args.output / "left alone", False)):
        call = command(where, total, args.checkpoint_every, resume=resume)
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    digests = [
        checkpoints.digest(experiments.load(where).run)
        for where in (folder, args.output / "left alone")
    ]
    equal = digests[0] == digests[1] and lines(folder) == total
    lost = [kill["done"] - kill["kept"] for kill in kills if kill["kept"] is not None]
    row = {
        "kills": str(len(kills)),
        "while starting": str(sum(kill["early"] for kill in kills)),
        "meta-updates in the end": str(total),
        "most meta-updates lost at once": str(max(lost, default=0)),
        "checkpoint interval": str(args.checkpoint_every),
        "bit-equal to a run left alone": "yes" if equal else "no",
    }
    return [row], {"kills": kills, "digests": digests}


def run_long(args: Long) -> tuple[list[dict[str, str]], dict[str, Any]]:
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: (
            compiled.append(seconds)
            if name == "/jax/core/compile/backend_compile_duration"
            else None
        )
    )
    every = max(1, args.meta_updates // 100)
    looks: list[dict[str, float]] = []

    def look(line: Any) -> None:
        if line["update"] % every == 0:
            looks.append(
                {
                    "update": line["update"],
                    "seconds": time.process_time(),  # of computing: others may use the machine, too
                    "resident_bytes": resident(),
                    "compilations": len(compiled),
                }
            )

    experiment = Experiment(
        config=dict(num_streams=2, hidden_sizes=(4,)),
        family_settings=dict(horizon=4),
        plan=training.Config(
            meta_updates=args.meta_updates, num_tasks=2, checkpoint_every=args.meta_updates // 10
        ),
    )
    folder = args.output / "run"
    experiments.train(experiment, folder=folder, sink=look, console=Console(quiet=True))
    text = (folder / training.METRICS_FILE).read_text(encoding="utf-8").splitlines()
    updates = [json.loads(line)["update"] for line in text]
    # The first tenth warms up: allocators, caches.
    first, last = looks[len(looks) // 10], looks[-1]
    half = looks[len(looks) // 2]
    speed = [
        (b["seconds"] - a["seconds"]) / (b["update"] - a["update"])
        for a, b in ((first, half), (half, last))
    ]
    row = {
        "meta-updates": str(args.meta_updates),
        "CPU seconds": f"{last['seconds']:.0f}",
        "growth of memory after the first tenth, MB": f"{(last['resident_bytes'] - first['resident_bytes']) / 1e6:.1f}",
        "memory, MB": f"{last['resident_bytes'] / 1e6:.0f}",
        "compilations after the first tenth": f"{last['compilations'] - first['compilations']}",
        "CPU time of an update, second half / first": f"{speed[1] / speed[0]:.3f}",
        "lines complete and in order": "yes"
        if updates == list(range(1, args.meta_updates + 1))
        else "no",
    }
    return [row], {"looks": looks, "last": np.asarray(text[-1:]).tolist()}


def run_faults(args: Faults) -> tuple[list[dict[str, str]], dict[str, Any]]:
    family, config = tasks.make("navigation"), maml.Config()
    plan = training.Config(meta_updates=args.meta_updates, num_tasks=args.num_tasks, seed=args.seed)
    task_key, key, optimal_key = jax.random.split(jax.random.key(1_000_000), 3)
    held_out = tasks.sample_tasks(task_key, family, args.eval_tasks, split="test")
    optimal = np.asarray(evaluation.optimal_returns(optimal_key, held_out, family=family))
    streams = args.meta_updates * args.num_tasks * config.num_streams * (config.num_updates + 1)
    rows, results = [], {}
    for rate in args.rates:
        algorithm = maml.maml(transform.faulty(family, rate=rate), config)
        lines: list[dict[str, Any]] = []
        trained = training.train(
            algorithm,
            transform.faulty(family, rate=rate),
            plan,
            sink=lines.append,
            console=Console(quiet=True),
        )
        returns = jax.jit(
            lambda meta, algorithm=algorithm: evaluation.adaptation_returns(
                key,
                meta,
                held_out,
                learner=algorithm.learner,
                env=family.env,
                num_streams=config.num_streams,
                num_updates=1,
                num_steps=family.horizon,
            )
        )(trained.state.meta)
        summary = evaluation.summarize(np.asarray(returns), optimal, optimal)
        skipped = {
            name: sum(int(line[f"skipped_{name}"]) for line in lines)
            for name in ("streams", "tasks", "updates")
        }
        results[str(rate)] = summary | {"skipped": skipped}
        low, high = summary["intervals"][1]
        rows.append(
            {
                "faulty steps": f"{100 * rate:g} %",
                "episodes left out": f"{100 * skipped['streams'] / streams:.1f} %",
                "tasks left out": str(skipped["tasks"]),
                "meta-updates left out": str(skipped["updates"]),
                "held-out return before": f"{summary['returns'][0]:.2f}",
                "after one step": f"{summary['returns'][1]:.2f} ({low:.2f}, {high:.2f})",
                "gap closed": f"{100 * summary['gap_closed'][1]:.1f} %",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows, {"rates": results}


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


KINDS: dict[type, Any] = {Kill: run_kill, Long: run_long, Faults: run_faults}


def main(args: Kill | Long | Faults) -> None:
    reports.refuse_to_overwrite(args.output)
    training.enable_compilation_cache()
    rows, results = KINDS[type(args)](args)
    reports.leave(args.output, dataclasses.asdict(args), rows, **results)


if __name__ == "__main__":
    Command: Any = (
        Annotated[Kill, tyro.conf.subcommand("kill")]
        | Annotated[Long, tyro.conf.subcommand("long")]
        | Annotated[Faults, tyro.conf.subcommand("faults")]
    )
    try:
        main(tyro.cli(Command, description=__doc__))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
