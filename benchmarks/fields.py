"""Does meta-learning help in games, with robots and in language?

On a family of each field, RL² learns to learn from the training tasks, and is then put into held-out tasks and
into tasks out of distribution, for one trial of a few episodes each. Beside it, with the same network,

* *no adaptation*: trained on the same tasks for as many environment steps, but its memory is cleared at the
  start of every episode;
* *told the task*: trained likewise with the task in its observation, so that there is nothing to find out;
  where a task is too large to be shown, the family's optimal agent stands for it;
* *from scratch*: begun anew in each task and trained there by PPO alone, for far more episodes than a trial has.

Returns are normalised: 0 is the random agent and 1 the family's reference agent, which is told the task; where it
has none, the learner that is told the task. Everything is the interquartile mean over seeds and tasks.

    python benchmarks/fields.py --output runs/fields
    python benchmarks/fields.py --fields translation --num-seeds 2

Leaves fields/*.json (one a field, written as soon as it is measured; `--resume` keeps those that are
there), results.json, table.md and fields.png in the output folder.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, evaluation, plotting, reports, tasks, training
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.tasks import TaskFamily, sample_tasks
from jaxmeta.tasks.informed import informed
from jaxmeta.types import MetaAlgorithm, Task

SPLITS = {"test": "held-out", "out_of_distribution": "out of distribution"}
META, CLEARED, TOLD, SCRATCH = "RL²", "no adaptation", "told the task", "from scratch"


@dataclasses.dataclass(frozen=True)
class Field:
    """A family and how it is learned."""

    family: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_episodes: int = 4
    """Of a trial."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of RL² and all beside it."""
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    meta_updates: int = 500
    num_tasks: int = 256
    """In a meta-update, a trial each."""
    task_fits: bool = True
    """Whether a task can be shown in the observation."""
    scratch_streams: int = 16
    """Episodes in an update from scratch."""
    scratch_updates: int = 200


MEMORY = dict(memory="linear", memory_size=64, encoder_sizes=(64,))
FIELDS = {
    "maze": Field(
        "maze",
        num_episodes=2,
        config=MEMORY,
        hyper=dict(learning_rate=3e-3, entropy_cost=0.03),
        meta_updates=150,
        num_tasks=128,
        scratch_streams=8,
        scratch_updates=50,
    ),
    "reaching": Field(
        "reacher",
        settings=dict(horizon=50),
        num_episodes=2,
        config=MEMORY,
        hyper=dict(learning_rate=1e-3, entropy_cost=0.003),
        meta_updates=150,
        num_tasks=128,
        scratch_streams=8,
        scratch_updates=50,
    ),
    "translation": Field(
        "translation",
        settings=dict(kinds=("months", "days"), max_length=11, horizon=11),
        num_episodes=10,
        config=dict(memory="linear", memory_size=128, encoder_sizes=(128,), num_epochs=2),
        # Without much entropy all that a policy learns is what most languages have in common: what it
        # never proposes it never finds to be right.
        hyper=dict(learning_rate=1e-3, entropy_cost=0.5, discount=0.0),
        meta_updates=1500,
        num_tasks=64,
        task_fits=False,
        scratch_streams=8,
        scratch_updates=100,
    ),
}


@dataclasses.dataclass(frozen=True)
class Main:
    """RL² and its controls, field by field."""

    output: Path = Path("runs/fields")
    """Folder for the results; made anew, unless resumed."""
    resume: bool = False
    """Keep the fields that are in the folder and measure the others."""
    fields: tuple[str, ...] = tuple(FIELDS)
    """Which."""
    num_seeds: int = 5
    """Seeds, trained at once."""
    budget: float = 1.0
    """Meta-updates and updates from scratch, in units of each field's own."""
    eval_tasks: int = 200
    """Tasks of each split."""
    scratch_tasks: int = 20
    """Those of them that are learned from scratch."""

    def __post_init__(self) -> None:
        checks.at_least("num_seeds", self.num_seeds, 1)
        checks.at_least("scratch_tasks", self.scratch_tasks, 2)
        checks.at_least("eval_tasks", self.eval_tasks, self.scratch_tasks)
        if not self.budget > 0:
            raise ValueError(f"budget={self.budget} must be positive")
        for name in self.fields:
            checks.choice("fields", name, FIELDS)


def learner_of(
    field: Field, family: TaskFamily, meta_updates: int, **settings: Any
) -> MetaAlgorithm:
    config = Config(**{"num_episodes": field.num_episodes} | dict(field.config) | settings)
    return rl2(family, config, Hyper(**field.hyper, anneal_updates=float(meta_updates)))


def trained(
    algorithm: MetaAlgorithm, family: TaskFamily, field: Field, meta_updates: int, num_seeds: int
) -> tuple[Any, np.ndarray, float]:
    """``meta`` of each seed, its mean return of a trial ``[S, U]``, and the seconds it took without compiling."""
    chunk = min(20, meta_updates)

    def advance(runs: training.Run, count: jax.Array) -> tuple[training.Run, jax.Array]:
        def one(run: training.Run) -> tuple[training.Run, dict]:
            return training.advance(
                run,
                count,
                algorithm=algorithm,
                family=family,
                num_tasks=field.num_tasks,
                max_updates=chunk,
            )

        runs, metrics = jax.vmap(one)(runs)
        return runs, metrics["return/trial"]

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    runs = jax.jit(jax.vmap(lambda key: training.begin(key, algorithm=algorithm)))(keys)
    call = jax.jit(advance, donate_argnums=0).lower(runs, jnp.asarray(0)).compile()
    began, curve = time.perf_counter(), []
    for done in range(0, meta_updates, chunk):
        count = min(chunk, meta_updates - done)
        runs, returns = call(runs, jnp.asarray(count))
        curve.append(np.asarray(returns)[:, :count])
    return runs.state.meta, np.concatenate(curve, axis=1), time.perf_counter() - began


def trial_returns(
    algorithm: MetaAlgorithm, family: TaskFamily, field: Field, metas: Any, drawn: Task
) -> np.ndarray:
    """Return of each episode of a trial in each task, ``[S, M, E]``."""

    def returns(meta: Any) -> jax.Array:
        trials = evaluation.trials(
            jax.random.key(10**6 + 1),
            meta,
            drawn,
            learner=algorithm.learner,
            env=family.env,
            num_steps=field.num_episodes * family.horizon,
        )
        return evaluation.episode_returns(trials, field.num_episodes)

    return np.asarray(jax.jit(lambda metas: jax.lax.map(returns, metas))(metas), np.float64)


def scratch_returns(
    family: TaskFamily, field: Field, drawn: Task, num_updates: int, num_seeds: int
) -> np.ndarray:
    """Mean return before each update of an agent that is born in its task, ``[S, M, U]``."""
    algorithm = learner_of(field, family, num_updates, num_episodes=1)

    def life(key: jax.Array, task: Task) -> jax.Array:
        copies = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (field.scratch_streams, *x.shape)), task
        )
        init_key, key = jax.random.split(key)

        def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, metrics = algorithm.step(key, state, copies)
            return state, metrics["return/trial"]

        return jax.lax.scan(update, algorithm.init(init_key), jax.random.split(key, num_updates))[1]

    num_tasks = jax.tree.leaves(drawn)[0].shape[0]
    keys = jax.random.split(jax.random.key(10**6 + 2), (num_seeds, num_tasks))
    lives = jax.jit(jax.vmap(jax.vmap(life), in_axes=(0, None)))
    return np.asarray(lives(keys, drawn), np.float64)


def measure(name: str, main: Main) -> dict[str, Any]:
    """One field."""
    field = FIELDS[name]
    family = tasks.make(field.family, **field.settings)
    meta_updates = max(1, round(main.budget * field.meta_updates))
    scratch_updates = max(1, round(main.budget * field.scratch_updates))
    contestants: dict[str, tuple[TaskFamily, dict]] = {
        META: (family, {}),
        CLEARED: (family, {"remembers": "episode"}),
    }
    if field.task_fits:
        contestants[TOLD] = (informed(family), {"remembers": "episode"})
    drawn = {
        split: sample_tasks(jax.random.key(10**6), family, main.eval_tasks, split=split)
        for split in SPLITS
    }
    returns: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    curves, seconds = {}, {}
    for contestant, (its_family, settings) in contestants.items():
        algorithm = learner_of(field, its_family, meta_updates, **settings)
        metas, curve, seconds[contestant] = trained(
            algorithm, its_family, field, meta_updates, main.num_seeds
        )
        curves[contestant] = curve.tolist()
        for split in SPLITS:
            returns[split][contestant] = trial_returns(
                algorithm, its_family, field, metas, drawn[split]
            )
        ends = returns["test"][contestant].mean((0, 1))
        print(
            f"{name}, {contestant}: {seconds[contestant]:.0f} s, episodes {np.round(ends, 3)}",
            file=sys.stderr,
            flush=True,
        )
    began = time.perf_counter()
    for split in SPLITS:
        few = jax.tree.map(lambda x: x[: main.scratch_tasks], drawn[split])
        returns[split][SCRATCH] = scratch_returns(
            family, field, few, scratch_updates, main.num_seeds
        )
    seconds[SCRATCH] = time.perf_counter() - began
    splits = {}
    for split, by_contestant in returns.items():
        random, reference = references(family, drawn[split], by_contestant.get(TOLD))
        scored = {}
        for contestant, x in by_contestant.items():
            tasks_of = x.shape[1]
            scale = random[:tasks_of], reference[:tasks_of]
            normalized = evaluation.normalized(x, *scale)  # [S, M, C]
            episodes = np.arange(1, x.shape[2] + 1)
            if contestant == SCRATCH:
                episodes = field.scratch_streams * episodes
                shown = np.unique(np.geomspace(1, x.shape[2], 25).astype(int)) - 1
                normalized, episodes = normalized[..., shown], episodes[shown]
            scored[contestant] = {
                "x": episodes.tolist(),
                "mean": evaluation.interquartile_mean(
                    normalized.reshape(-1, len(episodes))
                ).tolist(),
                "intervals": [
                    evaluation.interquartile_interval(normalized[..., i])
                    for i in range(len(episodes))
                ],
            }
        splits[split] = {
            "random": float(random.mean()),
            "reference": float(reference.mean()),
            "contestants": scored,
        }
    env_steps = meta_updates * field.num_tasks * field.num_episodes * family.horizon
    return {
        "family": family.name,
        "meta_updates": meta_updates,
        "env_steps": env_steps,
        "seconds": seconds,
        "curves": curves,
        "splits": splits,
    }


def references(
    family: TaskFamily, drawn: Task, told: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the random agent and of what counts as 1, ``[M]`` each."""
    keys = jax.random.split(jax.random.key(10**6 + 3))

    def of(function: Callable) -> Callable:
        return jax.jit(lambda key, drawn: function(key, drawn, family=family))

    random = of(evaluation.random_returns)(keys[0], drawn)
    if family.optimal_action or family.optimal_return or family.expert_action:
        reference = of(evaluation.reference_returns)(keys[1], drawn)
    elif told is not None:
        reference = told.mean((0, 2))
    else:
        raise ValueError(f"family {family.name!r} has no reference agent, and its task is not told")
    return np.asarray(random, np.float64), np.asarray(reference, np.float64)


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for name, result in measured.items():
        for split, title in SPLITS.items():
            scored = result["splits"][split]["contestants"]

            def score(contestant: str, i: int, scored: Mapping = scored) -> str:
                if contestant not in scored:
                    return ""
                entry = scored[contestant]
                low, high = entry["intervals"][i]
                return f"{entry['mean'][i]:.2f} ({low:.2f}, {high:.2f})"

            behind = [
                x
                for x, mean in zip(scored[SCRATCH]["x"], scored[SCRATCH]["mean"], strict=True)
                if mean >= scored[META]["mean"][-1]
            ]
            episodes = len(scored[META]["x"])
            rows.append(
                {
                    "field": name,
                    "tasks": title,
                    f"{META}, first episode": score(META, 0),
                    f"{META}, last": f"{score(META, -1)} after {episodes}",
                    f"{CLEARED}": score(CLEARED, -1),
                    f"{TOLD}": score(TOLD, -1),
                    f"{SCRATCH}, first update": score(SCRATCH, 0),
                    f"{SCRATCH}, last": f"{score(SCRATCH, -1)} after {scored[SCRATCH]['x'][-1]}",
                    "as good as RL² from scratch after": f"{behind[0]}" if behind else "never",
                }
            )
    return rows


def main(main: Main) -> None:
    if not main.resume:
        reports.refuse_to_overwrite(main.output)
    training.enable_compilation_cache()
    settings = json.loads(json.dumps(dataclasses.asdict(main), default=str))
    for name in ("output", "resume", "fields"):
        del settings[name]
    folder = main.output / "fields"
    folder.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name in main.fields:
        path = folder / f"{name.replace(' ', '_')}.json"
        described = settings | {"field": json.loads(json.dumps(dataclasses.asdict(FIELDS[name])))}
        if path.exists():
            measured[name] = json.loads(path.read_text(encoding="utf-8"))
            if measured[name]["settings"] != described:
                raise FileExistsError(
                    f"{path} was measured with other settings: name another folder"
                )
            continue
        measured[name] = measure(name, main) | {"settings": described, "machine": reports.machine()}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(measured[name]) + "\n", encoding="utf-8")
        temporary.replace(path)
    panels = {
        f"{name}, {title}": result["splits"][split]
        for name, result in measured.items()
        for split, title in SPLITS.items()
    }
    plotting.lifetimes(
        main.output / "fields.png", panels, x_label="episodes in the task", logarithmic=True
    )
    reports.leave(main.output, settings, table(measured), fields=measured)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
