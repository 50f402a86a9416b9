"""Does meta-learning help in games, with robots and in language?

On a family of each field, a meta-learner is trained on the training tasks, and is then put into held-out tasks
and into tasks out of distribution, for a few episodes each. RL² learns within a trial; MAML, of a softmax-linear
policy, and ProMP by a few gradient steps. Beside it, with the same policy,

* *no adaptation*: trained on the same tasks for as many environment steps, but without what adapts: RL²'s memory
  is cleared at the start of every episode, MAML and ProMP have no inner step;
* *told the task*: trained likewise with the task in its observation, so that there is nothing to find out; where a
  task is too large to be shown, and for MAML and ProMP where there is one, the family's optimal agent stands for it;
* *from scratch*: begun anew in each task and trained there alone, for far more episodes: by PPO, or by the same
  gradient steps from an untrained policy at the step size, of several, that does best on training tasks.

Returns are normalised: 0 is the random agent and 1 the family's reference agent, which is told the task; where it
has none, the learner that is told the task. Everything is the interquartile mean over seeds and tasks, and
*ahead of it* that of the differences from who does not adapt, task by task.

    python benchmarks/fields.py --output runs/fields
    python benchmarks/fields.py --fields translation --num-seeds 3

Leaves fields/*.json (one a field, written as soon as it is measured; `--resume` keeps those that are
there), results.json, table.md and fields.png in the output folder.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, evaluation, plotting, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import presets, records, reports, training
from jaxmeta.runs.experiments import Experiment, describe, make_algorithm
from jaxmeta.tasks import TaskFamily, sample_tasks
from jaxmeta.tasks.informed import informed
from jaxmeta.types import MetaAlgorithm, Task

SPLITS = {"test": "held-out", "out_of_distribution": "out of distribution"}
META, FIXED, TOLD, SCRATCH = "meta-learned", "no adaptation", "told the task", "from scratch"
Returns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Contestant to episodes in the task ``[C]`` and returns ``[S, M, C]``."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A preset, and what it is measured beside."""

    preset: str
    task_fits: bool = True
    """Whether a task can be shown in the observation."""
    eval_updates: int = 5
    """Gradient steps of MAML in a task."""
    scratch_streams: int = 8
    """Episodes in an update from scratch; MAML's are its own."""
    scratch_updates: int = 50
    scratch_step_sizes: tuple[float, ...] = ()
    """Inner step sizes that a policy without meta-learning may choose from."""

    @property
    def experiment(self) -> Experiment:
        return presets.PRESETS[self.preset]


FIELDS = {
    "maze": Field("rl2-maze"),
    "swimmer": Field("rl2-swimmer"),
    "summarisation": Field(
        "maml-summarisation", scratch_step_sizes=(10.0, 30.0, 100.0, 300.0, 1000.0)
    ),
    "translation": Field("rl2-translation", task_fits=False, scratch_updates=100),
    "half-cheetah": Field("rl2-half_cheetah_direction", scratch_updates=30),
    "half-cheetah, ProMP": Field(
        "promp-half_cheetah_direction",
        scratch_updates=30,
        scratch_step_sizes=(0.03, 0.1, 0.3),
    ),
}


@dataclasses.dataclass(frozen=True)
class Main:
    """Meta-learners and their controls, field by field."""

    output: Path = Path("runs/fields")
    """Folder for the results; made anew, unless resumed."""
    resume: bool = False
    """Keep the fields that are in the folder and measure the others."""
    fields: tuple[str, ...] = ("maze", "swimmer", "summarisation", "translation")
    """Which; `half-cheetah` and `half-cheetah, ProMP` need Brax."""
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
        checks.between("budget", self.budget, 1e-6, 1e6)
        checks.some("fields", self.fields)
        for name in self.fields:
            checks.choice("fields", name, FIELDS)

    def updates(self, field: Field) -> tuple[int, int]:
        """Meta-updates, and updates from scratch."""
        planned = field.experiment.plan.meta_updates, field.scratch_updates
        meta_updates, scratch_updates = (max(1, round(self.budget * x)) for x in planned)
        return meta_updates, scratch_updates


def trained(
    algorithm: MetaAlgorithm, family: TaskFamily, field: Field, meta_updates: int, num_seeds: int
) -> tuple[Any, np.ndarray, float]:
    """``meta`` of each seed, its mean return at the end of adapting ``[S, U]``, and the seconds without compiling."""
    chunk = min(20, meta_updates)

    def advance(runs: training.Run, count: jax.Array) -> tuple[training.Run, jax.Array]:
        def one(run: training.Run) -> tuple[training.Run, dict]:
            return training.advance(
                run,
                count,
                algorithm=algorithm,
                family=family,
                num_tasks=field.experiment.plan.num_tasks,
                max_updates=chunk,
            )

        runs, metrics = jax.vmap(one)(runs)
        return runs, metrics["return/after"]

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    runs = jax.jit(jax.vmap(lambda key: training.begin(key, algorithm=algorithm)))(keys)
    call = jax.jit(advance, donate_argnums=0).lower(runs, jnp.asarray(0)).compile()
    began, curve = time.perf_counter(), []
    for done in range(0, meta_updates, chunk):
        count = min(chunk, meta_updates - done)
        runs, returns = call(runs, jnp.asarray(count))
        curve.append(np.asarray(returns)[:, :count])
    return runs.state.meta, np.concatenate(curve, axis=1), time.perf_counter() - began


def measure_rl2(
    field: Field, family: TaskFamily, drawn: Mapping[str, Task], main: Main
) -> tuple[dict[str, Returns], dict[str, Any], int]:
    """Returns of every contestant in each split, the runs' curves and seconds, and their environment steps."""
    meta_updates, scratch_updates = main.updates(field)
    experiment = presets.lasting(field.experiment, meta_updates)

    def learner(family: TaskFamily, **settings: Any) -> MetaAlgorithm:
        config = {**experiment.config, **settings}
        return make_algorithm(dataclasses.replace(experiment, config=config), family)

    num_episodes = experiment.config["num_episodes"]
    contestants: dict[str, tuple[TaskFamily, dict]] = {
        META: (family, {}),
        FIXED: (family, {"remembers": "episode"}),
    }
    if field.task_fits:
        contestants[TOLD] = (informed(family), {"remembers": "episode"})
    returns: dict[str, Returns] = {split: {} for split in drawn}
    runs: dict[str, Any] = {}
    for name, (its_family, settings) in contestants.items():
        algorithm = learner(its_family, **settings)
        metas, curve, seconds = trained(algorithm, its_family, field, meta_updates, main.num_seeds)
        runs[name] = {"seconds": seconds, "curve": curve.tolist()}

        def trial_returns(
            meta: Any,
            drawn: Task,
            algorithm: MetaAlgorithm = algorithm,
            env: Any = its_family.env,
        ) -> jax.Array:
            trials = evaluation.trials(
                jax.random.key(10**6 + 1),
                meta,
                drawn,
                learner=algorithm.learner,
                env=env,
                num_steps=num_episodes * family.horizon,
            )
            return evaluation.episode_returns(trials, num_episodes)

        look = each_seed(trial_returns)
        for split, its_tasks in drawn.items():
            returns[split][name] = np.arange(1, num_episodes + 1), look(metas, its_tasks)
        _say(f"{family.name}, {name}: {seconds:.0f} s, {returns['test'][name][1].mean((0, 1))}")

    alone = learner(family, num_episodes=1)

    def life(key: jax.Array, task: Task) -> jax.Array:
        """Mean return before each update of an agent that is born in its task, ``[U]``."""
        copies = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (field.scratch_streams, *x.shape)), task
        )
        init_key, key = jax.random.split(key)

        def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, metrics = alone.step(key, state, copies)
            return state, metrics["return/trial"]

        return jax.lax.scan(update, alone.init(init_key), jax.random.split(key, scratch_updates))[1]

    keys = jax.random.split(jax.random.key(10**6 + 2), (main.num_seeds, main.scratch_tasks))
    lives = jax.jit(jax.vmap(jax.vmap(life), in_axes=(0, None)))
    episodes = field.scratch_streams * np.arange(1, scratch_updates + 1)
    for split, its_tasks in drawn.items():
        found = np.asarray(lives(keys, few(its_tasks, main)), np.float64)
        returns[split][SCRATCH] = episodes, found
    steps_of_task = num_episodes * family.horizon * experiment.config.get("num_streams", 1)
    return returns, runs, meta_updates * experiment.plan.num_tasks * steps_of_task


def measure_gradient_learner(
    field: Field, family: TaskFamily, drawn: Mapping[str, Task], main: Main
) -> tuple[dict[str, Returns], dict[str, Any], int]:
    """The same of MAML or ProMP; a policy without inner steps has as many environment steps in more meta-updates."""
    meta_updates, scratch_updates = main.updates(field)
    experiment = field.experiment
    config = ALGORITHMS[experiment.algorithm].Config(**experiment.config)
    contestants: dict[str, tuple[TaskFamily, int]] = {
        META: (family, config.num_updates),
        FIXED: (family, 0),
    }
    if not has_reference(family):
        contestants[TOLD] = (informed(family), 0)
    returns: dict[str, Returns] = {split: {} for split in drawn}
    runs: dict[str, Any] = {}

    def adapted(
        meta: Any, drawn: Task, *, algorithm: MetaAlgorithm, env: Any, num_updates: int
    ) -> jax.Array:
        return evaluation.adaptation_returns(
            jax.random.key(10**6 + 1),
            meta,
            drawn,
            learner=algorithm.learner,
            env=env,
            num_streams=config.num_streams,
            num_updates=num_updates,
            num_steps=family.horizon,
        )

    def episodes(num_updates: int) -> np.ndarray:
        """Seen before each look; 1 stands for none, on an axis that has no 0."""
        return np.maximum(config.num_streams * np.arange(num_updates + 1), 1)

    for name, (its_family, num_updates) in contestants.items():
        its_config = {**experiment.config, "num_updates": num_updates}
        algorithm = make_algorithm(dataclasses.replace(experiment, config=its_config), its_family)
        its_updates = meta_updates * (config.num_updates + 1) // (num_updates + 1)
        metas, curve, seconds = trained(algorithm, its_family, field, its_updates, main.num_seeds)
        runs[name] = {"seconds": seconds, "curve": curve.tolist()}
        steps = field.eval_updates if num_updates else 0
        look = each_seed(
            partial(adapted, algorithm=algorithm, env=its_family.env, num_updates=steps)
        )
        for split, its_tasks in drawn.items():
            returns[split][name] = episodes(steps), look(metas, its_tasks)
        _say(f"{family.name}, {name}: {seconds:.0f} s, {returns['test'][name][1].mean((0, 1))}")

    algorithm = make_algorithm(experiment, family)
    newborn = jax.vmap(lambda key: algorithm.init(key).meta)(
        jax.random.split(jax.random.key(10**6 + 2), main.num_seeds)
    )
    look = each_seed(
        partial(adapted, algorithm=algorithm, env=family.env, num_updates=scratch_updates)
    )
    tuning = sample_tasks(jax.random.key(10**6 + 4), family, main.scratch_tasks, split="train")

    def stepping(step_size: float) -> Any:
        sizes = jax.tree.map(lambda x: jnp.full_like(x, step_size), newborn.hyper.step_size)
        return newborn._replace(hyper=newborn.hyper._replace(step_size=sizes))

    # The best over the whole lifetime: at its end alone, a small step would be as good.
    earned = {x: look(stepping(x), tuning).mean() for x in field.scratch_step_sizes}
    best = max(earned, key=lambda x: earned[x])
    runs[SCRATCH] = {"step_size": best, "on_training_tasks": earned}
    for split, its_tasks in drawn.items():
        found = look(stepping(best), few(its_tasks, main))
        returns[split][SCRATCH] = episodes(scratch_updates), found
    steps_of_task = config.num_streams * family.horizon * (config.num_updates + 1)
    return returns, runs, meta_updates * experiment.plan.num_tasks * steps_of_task


def few(drawn: Task, main: Main) -> Task:
    """The tasks that are learned from scratch."""
    return jax.tree.map(lambda x: x[: main.scratch_tasks], drawn)


def each_seed(function: Callable) -> Callable[[Any, Task], np.ndarray]:
    """``function(meta, drawn)`` of each seed: ``(metas [S], drawn) -> [S, ...]``, compiled once."""
    call = jax.jit(lambda metas, drawn: jax.lax.map(lambda meta: function(meta, drawn), metas))
    return lambda metas, drawn: np.asarray(call(metas, drawn), np.float64)


def measure(name: str, main: Main) -> dict[str, Any]:
    """One field."""
    field = FIELDS[name]
    experiment = field.experiment
    family = tasks.make(experiment.family, **experiment.family_settings)
    drawn = {
        split: sample_tasks(jax.random.key(10**6), family, main.eval_tasks, split=split)
        for split in SPLITS
    }
    contest = measure_rl2 if experiment.algorithm == "rl2" else measure_gradient_learner
    returns, runs, env_steps = contest(field, family, drawn, main)
    splits = {}
    for split, by_contestant in returns.items():
        told = by_contestant.get(TOLD, (None, None))[1]
        random, reference = references(family, drawn[split], told)
        scored, at_last = {}, {}
        for contestant, (episodes, x) in by_contestant.items():
            num_tasks = x.shape[1]
            normalized = evaluation.normalized(x, random[:num_tasks], reference[:num_tasks])
            at_last[contestant] = normalized[..., last_look(name) if contestant == META else -1]
            # A long life is shown at some of its updates.
            shown = np.unique(np.geomspace(1, x.shape[2], 25).astype(int)) - 1
            normalized = normalized[..., shown]
            scored[contestant] = {
                "x": episodes[shown].tolist(),
                "mean": [
                    float(evaluation.interquartile_mean(at, axis=None))
                    for at in np.moveaxis(normalized, -1, 0)
                ],
                "intervals": [
                    evaluation.interquartile_interval(at) for at in np.moveaxis(normalized, -1, 0)
                ],
            }
        lead = at_last[META] - at_last[FIXED]  # task by task, which they share
        splits[split] = {
            "lead": [
                float(evaluation.interquartile_mean(lead, axis=None)),
                *evaluation.interquartile_interval(lead),
            ],
            "random": float(random.mean()),
            "reference": float(reference.mean()),
            "contestants": scored,
        }
    return {"family": family.name, "env_steps": env_steps, "runs": runs, "splits": splits}


def last_look(name: str) -> int:
    """Where a field's meta-learner has had what it was trained for: a whole trial, or so many gradient steps."""
    experiment = FIELDS[name].experiment
    return -1 if experiment.algorithm == "rl2" else experiment.config["num_updates"]


def has_reference(family: TaskFamily) -> bool:
    """Whether somebody knows how to act in its tasks; else the learner that is told them is what counts as 1."""
    return bool(family.optimal_action or family.optimal_return or family.expert_action)


def references(
    family: TaskFamily, drawn: Task, told: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the random agent and of what counts as 1, ``[M]`` each."""
    keys = jax.random.split(jax.random.key(10**6 + 3))

    def of(function: Callable) -> Callable:
        return jax.jit(lambda key, drawn: function(key, drawn, family=family))

    random = of(evaluation.random_returns)(keys[0], drawn)
    if has_reference(family):
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

            meta, scratch = scored[META], scored[SCRATCH]
            last = last_look(name)
            lead, low, high = result["splits"][split]["lead"]
            overtaken = [
                x
                for x, mean in zip(scratch["x"], scratch["mean"], strict=True)
                if mean >= meta["mean"][last]
            ]
            rows.append(
                {
                    "field": name,
                    "tasks": title,
                    f"{META}: first": score(META, 0),
                    "last": score(META, last),
                    "after episodes": f"{meta['x'][last]}",
                    FIXED: score(FIXED, -1),
                    "ahead of it": f"{lead:.2f} ({low:.2f}, {high:.2f})",
                    TOLD: score(TOLD, -1),
                    f"{SCRATCH}: first": score(SCRATCH, 0),
                    "at its end": score(SCRATCH, -1),
                    "after so many": f"{scratch['x'][-1]}",
                    "overtakes after": f"{overtaken[0]}" if overtaken else "never",
                }
            )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
        field = FIELDS[name]
        described = settings | {
            "field": records.plain(field),
            "experiment": records.plain(describe(field.experiment)),
        }
        if path.exists():
            measured[name] = json.loads(path.read_text(encoding="utf-8"))
            if measured[name]["settings"] != described:
                raise FileExistsError(
                    f"{path} was measured with other settings: name another folder"
                )
            continue
        measured[name] = measure(name, main) | {"settings": described, "machine": reports.machine()}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(
            records.dumps(records.measured(measured[name])) + "\n", encoding="utf-8"
        )
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
