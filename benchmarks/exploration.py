"""Does a learner explore in one episode for the sake of the next?

    python benchmarks/exploration.py buses     # DREAM's bus worlds: RL², E-RL², DREAM
    python benchmarks/exploration.py sparse    # sparse navigation: RL², E-RL², VariBAD, HyperX, DREAM

A trial is two episodes. Within one episode of a bus world to explore does not pay: the best agent walks and earns 0.3. An agent that has
found out where the buses go earns 0.8 in the second. In sparse navigation an agent earns nothing before it is near the goal, which
may lie anywhere. The random agent has the score 0, and the agent that knows the goal has 1.

DREAM's decoder reads whole trials; in `dream-explorations` it reads explorations alone, as published.

Learners are looked at so many times in training, on the same held-out tasks (`distraction` and the goals; the other bus worlds train on all
of their tasks).

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/exploration.py buses
    python benchmarks/exploration.py buses --worlds map --learners e-rl2 --budget 0.1

Each learner is kept in learners/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import evaluation, plotting, references, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import reports
from jaxmeta.tasks import TaskFamily, bus

WORLDS = bus.WORLDS
NUM_EPISODES = 2
_SIZES = dict(encoder_sizes=(64,), memory_size=64)
_TRIALS = dict(num_episodes=NUM_EPISODES, **_SIZES)
_PPO = dict(gae_lambda=0.95, discount=0.99)


_DREAM = dict(bottleneck_scale=0.5)
# Entropy is what lets the exploiter find each of the four buses: with less it learns three of them, and walks.
_DREAM_HYPER = dict(learning_rate=2e-3, entropy_cost=0.25, exploration_entropy=0.3, discount=0.9)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An algorithm with its settings and the length of its training, in which the numbers of ``anneals`` end."""

    algorithm: str
    config: dict[str, Any]
    hyper: dict[str, Any]
    meta_updates: int
    num_tasks: int
    anneals: tuple[str, ...] = ("anneal_updates",)


BUSES = {
    "rl2": Recipe("rl2", _TRIALS, _PPO | dict(learning_rate=2e-3, entropy_cost=0.1), 600, 256),
    "e-rl2": Recipe(
        "rl2",
        _TRIALS | dict(explore_episodes=1),
        _PPO | dict(learning_rate=2e-3, entropy_cost=0.1),
        600,
        256,
    ),
    "dream": Recipe(
        "dream", _TRIALS | _DREAM | dict(decoder_reads="trial"), _PPO | _DREAM_HYPER, 600, 256
    ),
    "dream-explorations": Recipe("dream", _TRIALS | _DREAM, _PPO | _DREAM_HYPER, 600, 256),
}
_SPARSE = dict(num_episodes=NUM_EPISODES, hidden_sizes=(64,))
SPARSE = {
    "rl2": Recipe("rl2", _SPARSE, _PPO | dict(learning_rate=1e-3), 400, 64),
    "e-rl2": Recipe(
        "rl2", _SPARSE | dict(explore_episodes=1), _PPO | dict(learning_rate=1e-3), 400, 64
    ),
    "varibad": Recipe("varibad", _SPARSE, _PPO | dict(learning_rate=1e-3), 400, 64),
    "hyperx": Recipe(
        "varibad",
        _SPARSE | dict(bonuses=("novelty", "error"), novelty_sizes=(64, 64, 32)),
        _PPO | dict(learning_rate=1e-3),
        400,
        64,
        ("anneal_updates", "bonus_updates"),
    ),
    "dream": Recipe("dream", _SPARSE, _PPO | dict(learning_rate=1e-3), 400, 64),
}


class Buses(study.Study):
    """Learners on bus worlds."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    worlds: Annotated[study.Names, study.known(WORLDS)] = ("distraction", "map")
    learners: Annotated[study.Names, study.known(BUSES)] = tuple(BUSES)
    num_seeds: int = 1  # Seeds, trained one after the other.
    looks: int = 15  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each recipe's own; step sizes and entropies are annealed in as many."""
    eval_tasks: int = 1000  # Held-out tasks, drawn with replacement.


class Sparse(study.Study):
    """Learners on 2-D navigation with a reward only near the goal."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    learners: Annotated[study.Names, study.known(SPARSE)] = tuple(SPARSE)
    num_seeds: int = 1  # Seeds, trained one after the other.
    looks: int = 15  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each recipe's own; step sizes and bonuses are annealed in as many."""
    eval_tasks: int = 500  # Held-out goals.


def measure(family: TaskFamily, label: str, recipe: Recipe, main: Any) -> dict[str, Any]:
    """Held-out returns of both episodes at every look, ``[S, looks, 2]``, with the steps and the CPU seconds up to each."""
    chunk = max(1, round(main.budget * recipe.meta_updates / main.looks))
    hyper = recipe.hyper | dict.fromkeys(recipe.anneals, chunk * main.looks)
    module = ALGORITHMS[recipe.algorithm]
    make = getattr(module, recipe.algorithm)
    algorithm = make(family, module.Config(**recipe.config), module.Hyper(**hyper))
    drawn = study.held_out(family, main.eval_tasks)

    @jax.jit
    def look(meta: Any) -> jax.Array:
        told = dict(env=family.env, num_steps=algorithm.lifetime.num_steps)
        key = jax.random.key(study.EVALUATION_SEED + 1)
        trials = evaluation.trials(key, meta, drawn, learner=algorithm.learner, **told)
        return jnp.mean(evaluation.episode_returns(trials, NUM_EPISODES), axis=0)

    train, _ = study.trainer(
        study.one(algorithm, 0), algorithm, family, num_tasks=recipe.num_tasks, chunk=chunk
    )
    returns, seconds = [], []
    for seed in range(main.num_seeds):
        run, curve, spent = study.one(algorithm, seed), [], [0.0]
        for _ in range(main.looks):
            began = time.process_time()
            trained = train(run, chunk)
            run = trained.run
            spent.append(spent[-1] + time.process_time() - began)
            curve.append(np.asarray(look(trained.meta)).tolist())
            last = {k: round(float(x[-1]), 3) for k, x in trained.curve.items()}
            study.say(f"{label}, seed {seed}: {spent[-1]:.0f} s, {np.round(curve[-1], 3)}, {last}")
        returns.append(curve)
        seconds.append(spent[1:])
    env_steps = chunk * int(trained.curve["env_steps"][0])
    return {
        "env_steps": [env_steps * (i + 1) for i in range(main.looks)],
        "returns": returns,
        "seconds": seconds,
        "machine": reports.machine(),
    }


def training_of(name: str, recipe: Recipe, part: Mapping[str, Any]) -> dict[str, str]:
    """The cells about training in a learner's row."""
    return {
        "learner": name,
        "tasks an update": str(recipe.num_tasks),
        "steps": study.spaced(part["env_steps"][-1]),
        "training, CPU s": f"{np.mean(part['seconds'], axis=0)[-1]:.0f}",
    }


def ends(part: Mapping[str, Any]) -> np.ndarray:
    """The returns of both episodes at the last look, ``[S, 2]``."""
    return np.asarray(part["returns"])[:, -1]


def each(values: np.ndarray) -> str:
    """The seeds' values as a cell of a table."""
    return ", ".join(f"{x:.2f}" for x in values)


def run_buses(main: Buses) -> None:
    settings = main.told("output", "resume", "worlds", "learners")
    table, rows, panels = [], {}, {}
    walking = references.bayes_optimal_bus(num_episodes=1)
    exploring = references.bayes_optimal_bus(num_episodes=2, explore_episodes=1)
    for world in main.worlds:
        lines = panels[f"{world}: return of the second episode"] = {}
        family = tasks.make("bus", world=world)
        for name in main.learners:
            path, recipe = main.output / "learners" / f"{world}-{name}.json", BUSES[name]
            part = study.kept(
                path, settings, partial(measure, family, f"{world}, {name}", recipe, main)
            )
            last = ends(part)
            table.append(
                {
                    "world": world,
                    "first episode": f"{last[:, 0].mean():.2f}",
                    "second episode": f"{last[:, 1].mean():.2f}",
                    "each seed": each(last[:, 1]),
                    **training_of(name, recipe, part),
                }
            )
            rows[f"{world}-{name}"] = part
            mean = np.mean(part["returns"], axis=0)[:, 1].tolist()
            lines[name] = (part["env_steps"], mean)
    best = dict(one_episode=walking, after_exploration=exploring)
    study.leave(main, table, csv=table, best=best, learners=rows)
    plotting.lines(main.output / "returns.png", panels, x_label="environment steps")


def run_sparse(main: Sparse) -> None:
    settings = main.told("output", "resume", "learners")
    family = tasks.make("sparse_navigation")
    drawn = study.held_out(family, main.eval_tasks)
    keys = jax.random.split(jax.random.key(study.EVALUATION_SEED + 2))
    random, best = (float(np.mean(x)) for x in study.references(keys, drawn, family))
    table, rows, panels = [], {}, {f"return of the {x} episode": {} for x in ("first", "second")}
    for name in main.learners:
        path, recipe = main.output / "learners" / f"{name}.json", SPARSE[name]
        part = study.kept(path, settings, partial(measure, family, name, recipe, main))
        scores = (ends(part) - random) / (best - random)
        table.append(
            {
                "first episode": f"{ends(part)[:, 0].mean():.1f}",
                "second episode": f"{ends(part)[:, 1].mean():.1f}",
                "score of the second": f"{scores[:, 1].mean():.2f}",
                "each seed": each(scores[:, 1]),
                **training_of(name, recipe, part),
            }
        )
        rows[name] = part
        for i, lines in enumerate(panels.values()):
            mean = np.mean(part["returns"], axis=0)[:, i].tolist()
            lines[name] = (part["env_steps"], mean)
    study.leave(main, table, csv=table, random=random, best=best, learners=rows)
    plotting.lines(main.output / "returns.png", panels, x_label="environment steps")


if __name__ == "__main__":
    study.main({Buses: run_buses, Sparse: run_sparse}, __doc__)
