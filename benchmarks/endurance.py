"""Does a run survive being killed, does a long one stay what it was, and what do broken numbers cost?

    python benchmarks/endurance.py kill --kills 100
    python benchmarks/endurance.py kill --learner recurrent_q   # whose checkpoints hold old trials
    python benchmarks/endurance.py long --meta-updates 100000
    python benchmarks/endurance.py faults --rates 0 0.001 0.01

`kill` trains by `benchmarks/train.py` and ends the process with SIGKILL at random moments, most of them after
training has begun, checkpoints every few updates among them; each time `--resume` goes on. A kill may cost
what was done since the last checkpoint and nothing else; what is learned in the end is compared, bit by bit, with a run that was left
alone. `long` makes very many small meta-updates and looks at host memory, compilations, the time of an update and the
metrics file. `faults` meta-trains MAML on 2-D navigation whose simulator reports NaN or infinity now and then, and
looks at what was left out and how the result adapts to held-out goals without faults.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import study
from rich.console import Console

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import maml
from jaxmeta.runs import checkpoints, experiments, run_folder, training
from jaxmeta.runs.experiments import Experiment
from jaxmeta.tasks import transform
from jaxmeta.types import Task

TRAIN = Path(__file__).parent / "train.py"
CONFIG = maml.Config()  # of the runs with faults
LEARNERS = {
    "maml": {"num-streams": 4, "hidden-sizes": 16, "task.horizon": 20},
    "recurrent_q": {
        "algorithm": "recurrent_q",
        "family": "bernoulli_bandit",
        "task.num-pulls": 20,
        "num-streams": 4,
        "memory-size": 8,
        "replay-trials": 64,
        "replayed-trials": 4,
    },
}
"""Small runs to be killed: their flags beside those that all have."""


class Kill(study.Study):
    """Kill a training run again and again."""

    kills: int = 100  # How often.
    learner: Annotated[str, study.known(LEARNERS)] = "maml"  # The run that is killed.
    checkpoint_every: int = 5  # Meta-updates between checkpoints.


class Long(study.Study):
    """Very many small meta-updates."""

    meta_updates: Annotated[int, study.at_least(10)] = 100_000  # How many.


class Faults(study.Study):
    """A simulator that breaks now and then."""

    rates: Annotated[study.Numbers, study.within(0, 1)] = (0.0, 1e-3, 1e-2)
    """Shares of steps whose reward or observation is not finite."""
    meta_updates: int = 200  # Meta-updates of each run.
    num_tasks: int = 20  # Tasks in each.
    eval_tasks: int = 200  # Held-out tasks.


def command(args: Kill, folder: Path, meta_updates: int, *, resume: bool) -> list[str]:
    """The command line of a small training run."""
    settings = LEARNERS[args.learner] | {
        "meta-updates": meta_updates,
        "checkpoint-every": args.checkpoint_every,
        "num-tasks": 2,
        "report-seconds": 0,  # every update is looked at, so that a kill can fall between any two
        "eval-tasks": 2,
        "output": folder,
    }
    told = [f"--{name}={x}" for name, x in settings.items()]
    return [sys.executable, str(TRAIN), *told, *(["--resume"] if resume else [])]


def lines(folder: Path) -> int:
    """Whole lines of a run's metrics."""
    path = folder / run_folder.METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest(folder: Path) -> int | None:
    """The last finished checkpoint, as a resumed run will find it."""
    path = folder / run_folder.CHECKPOINT_FOLDER
    if not path.exists():
        return None
    with checkpoints.open_manager(path) as manager:
        return manager.latest_step()


def kill_once(folder: Path, args: list[str], moment: random.Random) -> dict[str, Any]:
    """The meta-updates that were done, and those that were kept, after a start, a wait and a kill."""
    before = lines(folder)
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    early = moment.random() < 0.1
    if early:  # while it starts, reads its checkpoint or compiles
        time.sleep(moment.uniform(0.0, 6.0))
    else:
        while process.poll() is None and lines(folder) in (before, 0):
            time.sleep(0.002)
            # Resuming cuts the lines after the checkpoint.
            before = min(before, lines(folder) or before)
        time.sleep(moment.uniform(0.0, 1.5))
    ended = process.poll()
    process.kill()
    _, error = process.communicate()
    if ended is not None:
        raise OSError(f"the run ended by itself with {ended}: {error.decode()[-2000:]}")
    return {"early": early, "done": lines(folder), "kept": newest(folder)}


def kill_often(args: Kill, folder: Path) -> list[dict[str, Any]]:
    """All kills of a run in ``folder``."""
    moment = random.Random(0)
    kills: list[dict[str, Any]] = []
    while len(kills) < args.kills:
        resume = newest(folder) is not None
        if not resume:  # killed before it had anything to resume from
            shutil.rmtree(folder, ignore_errors=True)
        endless = command(args, folder, 10**6, resume=resume)
        kills.append(kill_once(folder, endless, moment))
        study.say(f"kill {len(kills)}: {kills[-1]}")
    return kills


def run_kill(args: Kill) -> None:
    folder, alone = args.output / "killed", args.output / "left alone"
    kills = kill_often(args, folder)
    total = (newest(folder) or 0) + 2 * args.checkpoint_every
    for where in (folder, alone):
        call = command(args, where, total, resume=where == folder)
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    digests = [checkpoints.digest(experiments.load(where).run) for where in (folder, alone)]
    equal = digests[0] == digests[1] and lines(folder) == total
    lost = [kill["done"] - kill["kept"] for kill in kills if kill["kept"] is not None]
    row = {
        "learner": args.learner,
        "kills": str(len(kills)),
        "while starting": str(sum(kill["early"] for kill in kills)),
        "meta-updates in the end": str(total),
        "most meta-updates lost at once": str(max(lost, default=0)),
        "checkpoint interval": str(args.checkpoint_every),
        "bit-equal to a run left alone": "yes" if equal else "no",
    }
    study.leave(args, [row], kills=kills, digests=digests)


def watched(args: Long, folder: Path) -> list[dict[str, float]]:
    """A hundred looks at a process while it trains into ``folder``."""
    compiled: list[float] = []

    def count(name: str, seconds: float, **_: Any) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    every = max(1, args.meta_updates // 100)
    looks: list[dict[str, float]] = []

    def look(line: Any) -> None:
        if line["update"] % every == 0:
            # Seconds are of computing: others may use the machine, too.
            spent = dict(update=line["update"], seconds=time.process_time())
            looks.append(spent | dict(resident_bytes=resident(), compilations=len(compiled)))

    plan = training.Config(args.meta_updates, 2, checkpoint_every=args.meta_updates // 10)
    config = dict(num_streams=2, hidden_sizes=(4,))
    experiment = Experiment(config=config, family_settings=dict(horizon=4), plan=plan)
    experiments.train(experiment, folder=folder, sink=look, console=Console(quiet=True))
    return looks


def run_long(args: Long) -> None:
    folder = args.output / "run"
    looks = watched(args, folder)
    text = (folder / run_folder.METRICS_FILE).read_text(encoding="utf-8").splitlines()
    updates = [json.loads(line)["update"] for line in text]
    # The first tenth warms up: allocators, caches.
    first, half, last = looks[len(looks) // 10], looks[len(looks) // 2], looks[-1]
    grown = {name: last[name] - first[name] for name in first}
    speed = [
        (b["seconds"] - a["seconds"]) / (b["update"] - a["update"])
        for a, b in ((first, half), (half, last))
    ]
    complete = updates == list(range(1, args.meta_updates + 1))
    row = {
        "meta-updates": str(args.meta_updates),
        "CPU seconds": f"{last['seconds']:.0f}",
        "growth of memory after the first tenth, MB": f"{grown['resident_bytes'] / 1e6:.1f}",
        "memory, MB": f"{last['resident_bytes'] / 1e6:.0f}",
        "compilations after the first tenth": f"{grown['compilations']}",
        "CPU time of an update, second half / first": f"{speed[1] / speed[0]:.3f}",
        "lines complete and in order": "yes" if complete else "no",
    }
    study.leave(args, [row], looks=looks, last=np.asarray(text[-1:]).tolist())


def with_faults(args: Faults, rate: float, held_out: Task, key: jax.Array) -> tuple:
    """Returns ``[M, 2]`` without faults after training with some, and how much was left out."""
    family = tasks.make("navigation")
    faulty = transform.faulty(family, rate=rate)
    algorithm = maml.maml(faulty, CONFIG)
    plan = training.Config(meta_updates=args.meta_updates, num_tasks=args.num_tasks)
    lines: list[dict[str, Any]] = []
    quiet = Console(quiet=True)
    meta = training.train(algorithm, faulty, plan, sink=lines.append, console=quiet).state.meta
    sizes = dict(num_streams=CONFIG.num_streams, num_updates=1)
    adapted = jax.jit(lambda meta: study.adapted(key, meta, held_out, algorithm, family, **sizes))
    skipped = {
        name: sum(int(line[f"skipped_{name}"]) for line in lines)
        for name in ("streams", "tasks", "updates")
    }
    return np.asarray(adapted(meta)), skipped


def run_faults(args: Faults) -> None:
    family = tasks.make("navigation")
    task_key, key, optimal_key = jax.random.split(jax.random.key(study.EVALUATION_SEED), 3)
    held_out = tasks.sample_tasks(task_key, family, args.eval_tasks, split="test")
    optimal = np.asarray(evaluation.optimal_returns(optimal_key, held_out, family=family))
    streams = args.meta_updates * args.num_tasks * CONFIG.num_streams * (CONFIG.num_updates + 1)
    rows, results = [], {}
    for rate in args.rates:
        returns, skipped = with_faults(args, rate, held_out, key)
        summary = evaluation.summarize(returns, optimal, optimal)
        results[str(rate)] = summary | {"skipped": skipped}
        after = study.with_interval(summary["returns"][1], *summary["intervals"][1])
        rows.append(
            {
                "faulty steps": f"{100 * rate:g} %",
                "episodes left out": f"{100 * skipped['streams'] / streams:.1f} %",
                "tasks left out": str(skipped["tasks"]),
                "meta-updates left out": str(skipped["updates"]),
                "held-out return before": f"{summary['returns'][0]:.2f}",
                "after one step": after,
                "gap closed": f"{100 * summary['gap_closed'][1]:.1f} %",
            }
        )
        study.say(rows[-1])
    study.leave(args, rows, rates=results)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    study.main({Kill: run_kill, Long: run_long, Faults: run_faults}, __doc__)
