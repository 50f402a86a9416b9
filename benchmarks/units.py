"""Does what is learned depend on the unit of rewards? The same tasks paid in units of 0.001, 1 and 1 000.

RL², VariBAD, MAML and ProMP with normalized advantages, and A2C whose agents scale their rewards, as learned
objectives are measured against, on bandits and on 2-D navigation. Beside them A2C on rewards as they are, which
does depend on the unit. Returns are in units; units share the seeds' keys and are trained in one program.

    python benchmarks/units.py --output runs/units
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import study

from jaxmeta import checks, evaluation, rollouts, tasks
from jaxmeta.algorithms import learned_objective
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.learners import update_rules
from jaxmeta.runs.experiments import Experiment, make_algorithm
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform import Wrapper
from jaxmeta.types import Learner, Task

UNITS = (1e-3, 1.0, 1e3)
FAMILIES = {
    "bandit": ("bernoulli_bandit", dict(num_arms=3, num_pulls=8)),
    "navigation": ("navigation", dict(horizon=10)),
}


class Main(study.Study):
    """Final returns in each unit."""

    families: Annotated[study.Names, study.known(FAMILIES)] = tuple(FAMILIES)  # Which tasks.
    learners: tuple[str, ...] | None = None  # Rows of the table by name; None is all of them.
    num_seeds: int = 3  # Seeds of each.
    meta_updates: int = 100  # Meta-updates of each, and updates of an A2C agent's life.
    trials: int = 64  # Trials in a meta-update of RL² and VariBAD, a task each.
    num_tasks: int = 10  # Tasks in a meta-update of MAML and ProMP.
    num_streams: int = 8  # Episodes a task and update; streams of an A2C agent.
    eval_tasks: int = 200  # Held-out tasks.

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.learners or ():
            checks.choice("learners", name, LEARNING)


@dataclasses.dataclass(frozen=True)
class Paid(Wrapper):
    """Rewards in another unit."""

    unit: Any

    def earn(self, reward: jax.Array, params: Task) -> jax.Array:
        return self.unit * reward


Learning = Callable[[jax.Array, TaskFamily, Main], jax.Array]
"""``(key, family, main) -> [eval_tasks]``, what is earned by what was learned in the family's unit."""


def trained(
    experiment: Experiment, num_tasks: int, key: jax.Array, family: TaskFamily, main: Main
) -> tuple[Learner, Any, Task, jax.Array]:
    """The learner, ``state.meta`` after training, held-out tasks, and a key to measure with."""
    algorithm = make_algorithm(experiment, family)
    key, task_key, measure_key = jax.random.split(key, 3)

    def update(state: Any, key: jax.Array) -> tuple[Any, None]:
        task_key, step_key = jax.random.split(key)
        drawn = tasks.sample_tasks(task_key, family, num_tasks, split="train")
        return algorithm.step(step_key, state, drawn)[0], None

    init_key, key = jax.random.split(key)
    keys = jax.random.split(key, main.meta_updates)
    meta = jax.lax.scan(update, algorithm.init(init_key), keys)[0].meta
    drawn = tasks.sample_tasks(task_key, family, main.eval_tasks, split="test")
    return algorithm.learner, meta, drawn, measure_key


def by_memory(name: str, **sizes: Any) -> Learning:
    """The learning of an algorithm with memory."""
    config = dict(num_minibatches=1, memory_size=16, **sizes)
    experiment = Experiment(name, config=config, hyper=dict(learning_rate=5e-3, discount=1.0))

    def learning(key: jax.Array, family: TaskFamily, main: Main) -> jax.Array:
        learner, *learned, key = trained(experiment, main.trials, key, family, main)
        told = dict(learner=learner, env=family.env, num_steps=family.horizon)
        return jnp.sum(evaluation.trials(key, *learned, **told).reward, axis=1)

    return learning


def by_gradients(name: str) -> Learning:
    """The learning of an algorithm that adapts by a gradient step."""
    config = dict(hidden_sizes=(16,), tasks_per_chunk=None, normalize=True)
    experiment = Experiment(name, config=config, hyper=dict(step_size=2.0, learning_rate=1e-2))

    def learning(key: jax.Array, family: TaskFamily, main: Main) -> jax.Array:
        its = study.with_config(experiment, num_streams=main.num_streams)
        learner, *learned, key = trained(its, main.num_tasks, key, family, main)
        told = dict(learner=learner, env=family.env, num_steps=family.horizon)
        sizes = dict(num_streams=main.num_streams, num_updates=1)
        return evaluation.adaptation_returns(key, *learned, **told, **sizes)[:, 1]

    return learning


def by_a2c(scale_rewards: bool) -> Learning:
    """The learning of A2C within one life: the return in an episode at its end."""

    def learning(key: jax.Array, family: TaskFamily, main: Main) -> jax.Array:
        told = dict(optimizer=optax.sgd, scale_rewards=scale_rewards)
        parts = update_rules.rule_learner(update_rules.a2c(), family, **told)
        meta = update_rules.Meta({}, learned_objective.Hyper(step_size=0.1))
        task_key, key = jax.random.split(key)
        drawn = tasks.sample_tasks(task_key, family, main.eval_tasks, split="test")
        setup = rollouts.Setup(parts.learner, family.env, main.num_streams, family.horizon)
        look = dataclasses.replace(setup, num_streams=32)

        def live(key: jax.Array, task: Task) -> jax.Array:
            begin_key, adapt_key, stream_key, look_key = jax.random.split(key, 4)
            born = rollouts.begin(begin_key, meta, task, setup=setup)
            told = dict(setup=setup, num_updates=main.meta_updates)
            agent, _, _ = rollouts.adapt(adapt_key, meta, task, *born, **told)
            streams = rollouts.begin_streams(stream_key, meta, task, setup=look)
            _, data = rollouts.collect(look_key, meta, task, agent, streams, setup=look)
            return jnp.mean(jax.vmap(first_episode_return)(data.reward, data.last))

        return jax.vmap(live)(jax.random.split(key, main.eval_tasks), drawn)

    return learning


LEARNING: dict[str, Learning] = {
    "RL²": by_memory("rl2"),
    "VariBAD": by_memory("varibad", hidden_sizes=(16,), latent_size=3, decoder_sizes=(8,)),
    "MAML, normalized": by_gradients("maml"),
    "ProMP, normalized": by_gradients("promp"),
    "A2C, scaled rewards": by_a2c(True),
    "A2C, rewards as they are": by_a2c(False),
}


def measure(main: Main, learning: Learning, base: TaskFamily) -> np.ndarray:
    """Final returns in units, ``[units, seeds, tasks]``."""

    def of(unit: jax.Array, key: jax.Array) -> jax.Array:
        family = dataclasses.replace(base, env=Paid(base.env, unit))
        return learning(key, family, main) / unit

    over_seeds = jax.vmap(of, in_axes=(None, 0))
    keys = jax.vmap(jax.random.key)(jnp.arange(main.num_seeds))
    returns = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(jnp.asarray(UNITS), keys)
    return np.asarray(returns)


def report(returns: np.ndarray) -> dict[str, Any]:
    """Means and intervals of ``[units, seeds, tasks]``, and whether each mean lies in all of them."""
    means = returns.mean((1, 2))
    intervals = [evaluation.mean_interval(x) for x in returns]
    agree = all(low <= mean <= high for low, high in intervals for mean in means)
    row = {"returns": means, "intervals": intervals, "by_seed": returns.mean(2)}
    found = {name: study.finite(np.asarray(x).tolist()) for name, x in row.items()}
    return found | {"agree": bool(agree)}


def table(rows: dict[str, dict[str, Any]], random: dict[str, float]) -> list[str]:
    """The lines of the table."""
    lines = []
    for name, row in rows.items():
        cells = [
            "diverged" if mean is None else study.with_interval(mean, *interval)
            for mean, interval in zip(row["returns"], row["intervals"], strict=True)
        ]
        lines.append((*name.split(", ", 1), *cells, "yes" if row["agree"] else "no"))
    units = [f"× {unit:g}" for unit in UNITS]
    names = "tasks", "learner", *units, "each within all intervals"
    references = ", ".join(f"{name} {x:.2f}" for name, x in random.items())
    return [*study.markdown(names, lines), "", f"random: {references}"]


def run(main: Main) -> None:
    rows, random, seconds = {}, {}, {}
    for name in main.families:
        family_name, settings = FAMILIES[name]
        family = tasks.make(family_name, **settings)
        drawn = tasks.sample_tasks(jax.random.key(1), family, main.eval_tasks, split="test")
        lone = evaluation.random_returns(jax.random.key(2), drawn, family=family)
        random[name] = float(jnp.mean(lone))
        for learner in main.learners or LEARNING:
            which = f"{name}, {learner}"
            returns, seconds[which] = study.timed(partial(measure, main, LEARNING[learner], family))
            rows[which] = report(returns)
            study.say(f"{which}: {rows[which]['returns']}")
    study.leave(main, table(rows, random), rows=rows, random=random, seconds=seconds)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
