"""Side by side with what else can be installed: this library and a peer, on one core, taking turns.

    python benchmarks/peers.py maml --output runs/peers-maml
    python benchmarks/peers.py ppo --output runs/peers-ppo
    python benchmarks/peers.py rollout --output runs/peers-rollout
    python benchmarks/peers.py grid --output runs/peers-grid

`maml`: MAML on 2-D navigation beside the same in PyTorch with TorchOpt's differentiable optimiser: environment, network,
baseline, surrogate and optimisers are the same, and all streams of a task act at once on both sides. Both have to collect
experience, adapt, collect again and step. Speed is measured first, a turn being a meta-update from drawing the tasks; then the
learning curves. PyTorch and TorchOpt are installed in a virtual environment that the script makes (kept in ``--peers``).

`ppo`: proximal policy optimisation of CartPole, written with this library's parts, beside rejax's. Same environment,
networks, optimiser, batch, minibatches and epochs. rejax 0.1.3 needs an older gymnax, so the script
makes a virtual environment for it (kept in ``--peers``, for the next time). Speed is measured first, a turn being
an update; then the learning curves, over equally many environment steps.

`rollout`: a policy network acting in many copies of one CartPole, beside gymnax's own ``RolloutWrapper``.

`grid`: random actions in many copies of an empty grid of xminigrid, beside its own auto-resetting wrapper; both in
an environment that the script makes, with this library as it stands here.

Each side is a program of its own (`benchmarks/sides/`) that waits for its turn, pinned to the same core: threads that
wait for each other cost more than they bring, and distort a comparison. On an accelerator say ``--core None``. Times
are of the process's CPU where it is pinned, else of the clock; ratios are of the two turns of one pair.
"""

import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import study
import tyro

from jaxmeta import plotting
from jaxmeta.runs import reports

SIDES = Path(__file__).parent / "sides"
HELP = "Folder of the peer's virtual environment, made where it is not there."
SIZES = "num_envs", "num_steps"
Peers = Annotated[Path, tyro.conf.arg(help=HELP)]


class Duel(study.Study):
    """Settings of every comparison."""

    pairs: int = 11  # Turns of each side that are measured.
    core: study.Core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    """The core that both are pinned to; None pins neither, for an accelerator."""


class Pair(Duel):
    """Many copies of one environment."""

    num_envs: int = 2048  # Copies of the environment.
    num_steps: int = 128  # Steps of each in a turn.

    @property
    def env_steps(self) -> int:
        """Environment steps of a turn."""
        return self.num_envs * self.num_steps


class Maml(Duel):
    """MAML on 2-D navigation, beside TorchOpt's."""

    peers: Peers = Path("runs/peers")
    num_tasks: int = 20  # Tasks of a meta-update.
    num_streams: Annotated[int, study.at_least(2)] = 20
    """Episodes in each, before and after the inner step; a baseline is fitted to the others."""
    num_steps: int = 100  # Steps of an episode.
    num_seeds: int = 6  # Learning curves of each.
    num_updates: int = 40  # Meta-updates of a learning curve.
    evaluate_every: int = 5  # Meta-updates between two evaluations, on 100 held-out tasks.

    @property
    def env_steps(self) -> int:
        """Environment steps of a turn."""
        return 2 * self.num_tasks * self.num_streams * self.num_steps


class Ppo(Pair):
    """PPO on CartPole, beside rejax's."""

    peers: Peers = Path("runs/peers")
    num_epochs: int = 4  # Passes over a batch.
    num_minibatches: int = 4  # Gradient steps in a pass.
    num_seeds: int = 6  # Learning curves of each.
    num_updates: int = 20  # Updates of a learning curve.
    evaluate_every: int = 2  # Updates between two evaluations, of 128 episodes each.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_envs % self.num_minibatches:
            raise ValueError(
                f"num_minibatches={self.num_minibatches} must divide num_envs={self.num_envs}"
            )


class Rollout(Pair):
    """A policy that acts, beside gymnax's RolloutWrapper."""


class Grid(Pair):
    """Random actions in xminigrid's grids, beside its own wrapper."""

    peers: Peers = Path("runs/peers")


class Peer(NamedTuple):
    """The other side of a comparison."""

    name: str
    title: str
    scripts: tuple[str, str]  # of this library and of the peer; they may be one
    told: tuple[str, ...]  # names of the settings that both are told
    requirements: tuple[str, ...] = ()  # of its virtual environment; none where it needs none


PEERS: dict[type, Peer] = {
    Maml: Peer(
        "torchopt",
        "TorchOpt 0.7.3, PyTorch 2.13, MAML",
        ("jaxmeta_maml.py", "torchopt_maml.py"),
        ("num_tasks", "num_streams", "num_steps"),
        ("torch==2.13.0", "torchopt==0.7.3"),
    ),
    Ppo: Peer(
        "rejax",
        "rejax 0.1.3, PPO",
        ("jaxmeta_ppo.py", "rejax_ppo.py"),
        ("num_envs", "num_steps", "num_epochs", "num_minibatches"),
        ("rejax==0.1.3", "gymnax==0.0.9", "jax<0.11"),
    ),
    Rollout: Peer("gymnax", "gymnax, RolloutWrapper", ("rollout.py",) * 2, SIZES),
    Grid: Peer(
        "xminigrid",
        "xminigrid 0.9.3, GymAutoResetWrapper",
        ("xminigrid_rollout.py",) * 2,
        SIZES,
        ("xminigrid==0.9.3", "--editable", str(Path(__file__).parent.parent)),
    ),
}


class Side:
    """A program that is asked for one turn after the other."""

    def __init__(self, python: Path, script: str, settings: dict[str, Any], core: int | None):
        command = [str(python), str(SIDES / script), json.dumps(settings)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with reports.on_core(core):
            self.process = subprocess.Popen(command, text=True, **pipes)

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise OSError(f"{' '.join(self.process.args[:2])} has ended: see above why")
        return json.loads(answer)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        with self.process:  # which closes its pipes
            self.process.kill()


def peer_python(folder: Path, requirements: tuple[str, ...]) -> Path:
    """The Python of a virtual environment with ``requirements``, which is made where it is not there."""
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        study.say(f"installing {', '.join(requirements)} in {folder}")
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        if subprocess.run(install, stdout=sys.stderr).returncode:
            raise OSError(f"cannot install {', '.join(requirements)}: see above why")
        made.touch()
    return python


def duel(
    main: Pair | Maml, ours: Side, theirs: Side, name: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """A row of the table, and all turns."""
    clock = "seconds" if main.core is None else "cpu_seconds"
    turns: list[list[dict[str, Any]]] = [[], []]
    for turn in range(main.pairs + 1):
        for side, mine in zip((ours, theirs), turns, strict=True):
            answer = side.ask(do="turn")
            if turn:  # the first is for warming up
                mine.append(answer)
    speeds = [[main.env_steps / turn[clock] for turn in mine] for mine in turns]
    ratios = [ours / theirs for ours, theirs in zip(*speeds, strict=True)]
    row = {
        "peer": name,
        "jaxmeta, k steps/s": f"{statistics.median(speeds[0]) / 1e3:.0f}",
        "peer, k steps/s": f"{statistics.median(speeds[1]) / 1e3:.0f}",
        "× as fast": f"{statistics.median(ratios):.2f}",
        "from, to": f"{min(ratios):.2f}, {max(ratios):.2f}",
    }
    return row, {"clock": clock, "jaxmeta": turns[0], "peer": turns[1], "ratios": ratios}


def curves(main: Ppo | Maml, ours: Side, theirs: Side, peer: str) -> dict[str, np.ndarray]:
    """Mean returns ``[seeds, evaluations]`` of each side."""
    shape = (main.num_seeds, main.num_updates // main.evaluate_every + 1)
    returns = {"jaxmeta": np.zeros(shape), peer: np.zeros(shape)}
    for seed in range(main.num_seeds):
        for side, (name, mine) in zip((ours, theirs), returns.items(), strict=True):
            side.ask(do="begin", seed=seed)
            for evaluation in range(shape[1]):
                for _ in range(main.evaluate_every if evaluation else 0):
                    side.ask(do="turn")
                mine[seed, evaluation] = side.ask(do="evaluate", seed=seed)["return"]
            study.say(f"{name}, seed {seed}: {mine[seed].round(1)}")
    return returns


def run(main: Duel) -> None:
    """Speed and, of a learner, learning curves on both sides."""
    peer = PEERS[type(main)]
    ours, theirs = peer.scripts
    python = Path(sys.executable)
    if peer.requirements:
        python = peer_python(main.peers / peer.name, peer.requirements)
    told = main.some(*peer.told)
    of_us, of_them = ({"by": x} if ours == theirs else {} for x in ("jaxmeta", peer.name))
    our_python = python if ours == theirs else Path(sys.executable)
    with (
        Side(our_python, ours, told | of_us, main.core) as our_side,
        Side(python, theirs, told | of_them, main.core) as their_side,
    ):
        row, turns = duel(main, our_side, their_side, peer.title)
        returns = {}
        if isinstance(main, Ppo | Maml):
            returns = curves(main, our_side, their_side, peer.name)
    for side, mine in returns.items():
        row[f"return, {side}"] = f"{mine[:, -1].mean():.3g}"
        row[f"mean of the curve, {side}"] = f"{mine.mean():.3g}"
    results = {"turns": turns}
    if returns:
        results["returns"] = {k: x.tolist() for k, x in returns.items()}
    study.leave(main, [row], results=results)
    if returns:
        steps = main.env_steps * main.evaluate_every * np.arange(mine.shape[1])
        panels = {"return": {k: (steps, x.mean(0)) for k, x in returns.items()}}
        plotting.lines(main.output / "curves.png", panels=panels, x_label="environment steps")


if __name__ == "__main__":
    study.main(dict.fromkeys(PEERS, run), __doc__)
