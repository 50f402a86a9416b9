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

Each field is kept in fields/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import checks, evaluation, plotting, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import presets, records, reports
from jaxmeta.runs.experiments import Experiment, describe, make_algorithm
from jaxmeta.tasks import TaskFamily, sample_tasks
from jaxmeta.tasks.informed import informed
from jaxmeta.types import MetaAlgorithm, Task

META, FIXED, TOLD, SCRATCH = "meta-learned", "no adaptation", "told the task", "from scratch"
Returns = dict[str, tuple[np.ndarray, np.ndarray]]
"""Contestant to episodes in the task ``[C]`` and returns ``[S, M, C]``."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A preset, and what it is measured beside."""

    preset: str
    task_fits: bool = True  # Whether a task can be shown in the observation.
    eval_updates: int = 5  # Gradient steps of MAML in a task.
    scratch_streams: int = 8  # Episodes in an update from scratch; MAML's are its own.
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
        "promp-half_cheetah_direction", scratch_updates=30, scratch_step_sizes=(0.03, 0.1, 0.3)
    ),
}


class Main(study.Study):
    """Meta-learners and their controls, field by field."""

    resume: bool = False  # Keep the fields that are in the folder and measure the others.
    fields: Annotated[study.Names, study.known(FIELDS)] = tuple(FIELDS)[:4]
    """Which; `half-cheetah` and `half-cheetah, ProMP` need Brax."""
    num_seeds: int = 5  # Seeds, trained at once.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates and updates from scratch, in units of each field's own."""
    eval_tasks: int = 200  # Tasks of each split.
    scratch_tasks: int = 20  # Those of them that are learned from scratch.

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("eval_tasks", self.eval_tasks, self.scratch_tasks)


@dataclasses.dataclass(frozen=True)
class Contest:
    """A field with its tasks by split, and what its contestants have earned so far."""

    name: str
    main: Main
    family: TaskFamily
    drawn: Mapping[str, Task]
    returns: dict[str, Returns]
    runs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Curves and seconds of the contestants' training."""

    @property
    def field(self) -> Field:
        return FIELDS[self.name]

    @property
    def experiment(self) -> Experiment:
        """The field's, of as many meta-updates as the budget allows."""
        planned = self.field.experiment.plan.meta_updates
        return presets.lasting(self.field.experiment, self.within_budget(planned))

    def within_budget(self, updates: int) -> int:
        """A number of updates in proportion to the budget."""
        return max(1, round(self.main.budget * updates))

    def enter(
        self, name: str, family: TaskFamily, axis: np.ndarray, look: Callable, **settings: Any
    ) -> None:
        """Trains a contestant with all seeds and looks at it in each split.

        ``look(algorithm, family, meta, drawn)`` are returns ``[M, C]`` at ``axis [C]``. Without
        inner steps it has as many environment steps in more meta-updates.
        """
        algorithm = make_algorithm(study.with_config(self.experiment, **settings), family)
        updates, num_tasks = self.experiment.plan.meta_updates, self.experiment.plan.num_tasks
        if settings.get("num_updates") == 0:
            updates *= config_of(self.experiment).num_updates + 1
        runs = study.seeds(algorithm, self.main.num_seeds)
        told = dict(num_tasks=num_tasks, chunk=min(20, updates))
        train, _ = study.trainer(runs, algorithm, family, **told)
        learned = train(runs, updates)
        curve = learned.curve["return/after"].tolist()
        self.runs[name] = {"seconds": learned.seconds, "curve": curve}
        every = each_seed(partial(look, algorithm, family))
        for split, its_tasks in self.drawn.items():
            self.returns[split][name] = axis, every(learned.meta, its_tasks)
        scores = self.returns["test"][name][1].mean((0, 1))
        study.say(f"{self.family.name}, {name}: {learned.seconds:.0f} s, {scores}")

    def learn_anew(self, axis: np.ndarray, look: Callable[[Task], np.ndarray]) -> None:
        """Keeps ``look(drawn) [S, M, C]`` of learners from scratch in each split."""
        for split, its_tasks in self.drawn.items():
            few = jax.tree.map(lambda x: x[: self.main.scratch_tasks], its_tasks)
            self.returns[split][SCRATCH] = axis, look(few)

    def env_steps(self, steps_of_task: int) -> int:
        """The environment steps of a run, from the number of steps in one task of a meta-update."""
        return self.experiment.plan.meta_updates * self.experiment.plan.num_tasks * steps_of_task


def config_of(experiment: Experiment) -> Any:
    """All settings of an experiment's algorithm."""
    return ALGORITHMS[experiment.algorithm].Config(**experiment.config)


def measure_rl2(contest: Contest) -> int:
    """The environment steps of a run, after all contestants have lived."""
    field, family, main = contest.field, contest.family, contest.main
    config = config_of(contest.experiment)
    num_episodes, num_steps = config.num_episodes, config.num_episodes * family.horizon

    def look(algorithm: MetaAlgorithm, family: TaskFamily, meta: Any, drawn: Task) -> jax.Array:
        told = dict(learner=algorithm.learner, env=family.env, num_steps=num_steps)
        trials = evaluation.trials(jax.random.key(10**6 + 1), meta, drawn, **told)
        return evaluation.episode_returns(trials, num_episodes)

    enter = partial(contest.enter, axis=np.arange(1, num_episodes + 1), look=look)
    enter(META, family)
    enter(FIXED, family, remembers="episode")
    if field.task_fits:
        enter(TOLD, informed(family), remembers="episode")

    updates = contest.within_budget(field.scratch_updates)
    algorithm = make_algorithm(study.with_config(contest.experiment, num_episodes=1), family)
    life = partial(newborn_returns, algorithm, field, updates)
    keys = jax.random.split(jax.random.key(10**6 + 2), (main.num_seeds, main.scratch_tasks))
    lives = jax.jit(jax.vmap(jax.vmap(life), in_axes=(0, None)))
    axis = field.scratch_streams * np.arange(1, updates + 1)
    contest.learn_anew(axis, lambda few: np.asarray(lives(keys, few), np.float64))
    return contest.env_steps(num_steps * config.num_streams)


def newborn_returns(
    algorithm: MetaAlgorithm, field: Field, num_updates: int, key: jax.Array, task: Task
) -> jax.Array:
    """Mean return before each update of an agent that is born in its task, ``[U]``."""
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (field.scratch_streams, *x.shape)), task)
    init_key, key = jax.random.split(key)

    def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = algorithm.step(key, state, copies)
        return state, metrics["return/trial"]

    return jax.lax.scan(update, algorithm.init(init_key), jax.random.split(key, num_updates))[1]


def measure_gradient_learner(contest: Contest) -> int:
    """The same of MAML or ProMP."""
    field, family = contest.field, contest.family
    config = config_of(contest.experiment)

    def seen(num_updates: int) -> tuple[np.ndarray, Callable]:
        """Episodes before each look, and the look; 1 stands for none, on an axis that has no 0."""
        key, sizes = jax.random.key(10**6 + 1), dict(num_streams=config.num_streams)

        def look(algorithm: MetaAlgorithm, family: TaskFamily, meta: Any, drawn: Task) -> jax.Array:
            steps = sizes | dict(num_updates=num_updates)
            return study.adapted(key, meta, drawn, algorithm, family, **steps)

        return np.maximum(config.num_streams * np.arange(num_updates + 1), 1), look

    contest.enter(META, family, *seen(field.eval_updates))
    contest.enter(FIXED, family, *seen(0), num_updates=0)
    if not study.has_reference(family):
        contest.enter(TOLD, informed(family), *seen(0), num_updates=0)

    algorithm = make_algorithm(contest.experiment, family)
    axis, look = seen(contest.within_budget(field.scratch_updates))
    look_anew = each_seed(partial(look, algorithm, family))
    best = best_newborn(contest, algorithm, look_anew)
    contest.learn_anew(axis, lambda few: look_anew(best, few))
    return contest.env_steps(config.num_streams * family.horizon * (config.num_updates + 1))


def best_newborn(
    contest: Contest, algorithm: MetaAlgorithm, look: Callable[[Any, Task], np.ndarray]
) -> Any:
    """``metas [S]`` before any training, with the step size that earns most in training tasks."""
    main, step_sizes = contest.main, contest.field.scratch_step_sizes
    keys = jax.random.split(jax.random.key(10**6 + 2), main.num_seeds)
    newborn = jax.vmap(lambda key: algorithm.init(key).meta)(keys)
    key = jax.random.key(10**6 + 4)
    tuning = sample_tasks(key, contest.family, main.scratch_tasks, split="train")

    def stepping(step_size: float) -> Any:
        sizes = jax.tree.map(lambda x: jnp.full_like(x, step_size), newborn.hyper.step_size)
        return study.with_hyper(newborn, step_size=sizes)

    # The best over the whole lifetime: at its end alone, a small step would be as good.
    earned = {x: look(stepping(x), tuning).mean() for x in step_sizes}
    best = max(earned, key=lambda x: earned[x])
    contest.runs[SCRATCH] = {"step_size": best, "on_training_tasks": earned}
    return stepping(best)


def each_seed(function: Callable) -> Callable[[Any, Task], np.ndarray]:
    """``function(meta, drawn)`` of each seed: ``(metas [S], drawn) -> [S, ...]``, compiled once."""
    call = jax.jit(lambda metas, drawn: jax.lax.map(lambda meta: function(meta, drawn), metas))
    return lambda metas, drawn: np.asarray(call(metas, drawn), np.float64)


def measure(name: str, main: Main) -> dict[str, Any]:
    """One field."""
    experiment = FIELDS[name].experiment
    family = tasks.make(experiment.family, **experiment.family_settings)
    key = jax.random.key(study.EVALUATION_SEED)
    draw = partial(sample_tasks, key, family, main.eval_tasks)
    drawn = {split: draw(split=split) for split in study.SPLITS}
    contest = Contest(name, main, family, drawn, {split: {} for split in drawn})
    measured = measure_rl2 if experiment.algorithm == "rl2" else measure_gradient_learner
    env_steps = measured(contest)
    return {
        "family": family.name,
        "env_steps": env_steps,
        "runs": contest.runs,
        "splits": {split: normalized(contest, split) for split in drawn},
        "machine": reports.machine(),
    }


def normalized(contest: Contest, split: str) -> dict[str, Any]:
    """Normalised returns of the contestants on a split, and the lead of the meta-learned one."""
    keys = jax.random.split(jax.random.key(10**6 + 3))
    random, *reference = study.references(keys, contest.drawn[split], contest.family)
    reference = reference[0] if reference else contest.returns[split][TOLD][1].mean((0, 2))
    random, reference = (np.asarray(x, np.float64) for x in (random, reference))
    scored, at_last = {}, {}
    for contestant, (episodes, x) in contest.returns[split].items():
        num_tasks = x.shape[1]
        scores = evaluation.normalized(x, random[:num_tasks], reference[:num_tasks])
        at_last[contestant] = scores[..., last_look(contest.name) if contestant == META else -1]
        # A long life is shown at some of its updates.
        shown = np.unique(np.geomspace(1, x.shape[2], 25).astype(int)) - 1
        mean, intervals = study.middles(scores[..., shown])
        x = episodes[shown].tolist()
        scored[contestant] = {"x": x, "mean": mean, "intervals": intervals}
    # Task by task, which they share.
    lead, interval = study.middle(at_last[META] - at_last[FIXED])
    return {
        "lead": [lead, *interval],
        "random": float(random.mean()),
        "reference": float(reference.mean()),
        "contestants": scored,
    }


def last_look(name: str) -> int:
    """The index of the last return that a field's meta-learner is trained for."""
    experiment = FIELDS[name].experiment
    return -1 if experiment.algorithm == "rl2" else experiment.config["num_updates"]


def row(name: str, split: str, result: Mapping[str, Any]) -> dict[str, str]:
    """A field's row of the table for a split."""
    scored = result["splits"][split]["contestants"]
    meta, scratch, last = scored[META], scored[SCRATCH], last_look(name)

    def score(contestant: str, i: int) -> str:
        entry = scored.get(contestant)
        return study.with_interval(entry["mean"][i], *entry["intervals"][i]) if entry else ""

    ended = zip(scratch["x"], scratch["mean"], strict=True)
    overtaken = [x for x, mean in ended if mean >= meta["mean"][last]]
    return {
        "field": name,
        "tasks": study.SPLITS[split],
        f"{META}: first": score(META, 0),
        "last": score(META, last),
        "after episodes": f"{meta['x'][last]}",
        FIXED: score(FIXED, -1),
        "ahead of it": study.with_interval(*result["splits"][split]["lead"]),
        TOLD: score(TOLD, -1),
        f"{SCRATCH}: first": score(SCRATCH, 0),
        "at its end": score(SCRATCH, -1),
        "after so many": f"{scratch['x'][-1]}",
        "overtakes after": f"{overtaken[0]}" if overtaken else "never",
    }


def run(main: Main) -> None:
    settings = main.told("output", "resume", "fields")
    measured = {}
    for name in main.fields:
        field = records.plain(FIELDS[name])
        experiment = records.plain(describe(FIELDS[name].experiment))
        path = main.output / "fields" / f"{name.replace(' ', '_')}.json"
        told = settings | {"field": field, "experiment": experiment}
        measured[name] = study.kept(path, told, partial(measure, name, main))
    both = [(name, split) for name in measured for split in study.SPLITS]
    panels = {
        f"{name}, {study.SPLITS[split]}": measured[name]["splits"][split] for name, split in both
    }
    path = main.output / "fields.png"
    plotting.lifetimes(path, panels, x_label="episodes in the task", logarithmic=True)
    rows = [row(name, split, measured[name]) for name, split in both]
    study.leave(main, rows, settings=settings, fields=measured)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
