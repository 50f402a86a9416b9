"""Does a learner explore in one episode for the sake of the next? DREAM's bus worlds.

A trial is two episodes. Within one episode to explore does not pay: the best agent walks and earns 0.3. An agent that has
found out where the buses go earns 0.8 in the second. Learners are looked at so many times in training, on the same
held-out tasks (`distraction`; the other worlds train on all of their tasks).

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/exploration.py
    python benchmarks/exploration.py --worlds map --learners e-rl2 --budget 0.1

Each learner is kept in learners/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import evaluation, plotting, references, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import reports
from jaxmeta.tasks import bus

WORLDS = bus.WORLDS
_TRIALS = dict(num_episodes=2, encoder_sizes=(64,), memory_size=64)
_PPO = dict(learning_rate=2e-3, entropy_cost=0.02, gae_lambda=0.95, discount=0.99)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An algorithm with its settings and the length of its training."""

    algorithm: str
    config: dict[str, Any]
    hyper: dict[str, Any]
    meta_updates: int
    num_tasks: int


RECIPES = {
    "rl2": Recipe("rl2", _TRIALS, _PPO, 1500, 256),
    "e-rl2": Recipe("rl2", _TRIALS | dict(explore_episodes=1), _PPO, 1500, 256),
    "dream": Recipe(
        "dream",
        dict(num_epochs=1, num_minibatches=8, replay_trials=8192),
        dict(learning_rate=2e-3, epsilon_updates=1200, anneal_updates=2400, last_epsilon=0.05),
        2400,
        64,
    ),
}


class Main(study.Study):
    """Learners on bus worlds."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    worlds: Annotated[study.Names, study.known(WORLDS)] = ("distraction", "map")
    learners: Annotated[study.Names, study.known(RECIPES)] = tuple(RECIPES)
    num_seeds: int = 1  # Seeds, trained one after the other.
    looks: int = 15  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each recipe's own; step sizes and ε are annealed in as many."""
    eval_tasks: int = 1000  # Held-out tasks, drawn with replacement.


def of_length(recipe: Recipe, meta_updates: int) -> dict[str, Any]:
    """The recipe's numbers, annealed in as many meta-updates."""
    annealed = [x for x in recipe.hyper if x.endswith("_updates")]
    share = meta_updates / recipe.meta_updates
    return dict(recipe.hyper) | {name: recipe.hyper[name] * share for name in annealed}


def measure(world: str, name: str, main: Main) -> dict[str, Any]:
    """Held-out returns of both episodes at every look, ``[S, looks, 2]``, with the steps and the seconds up to each."""
    recipe = RECIPES[name]
    family = tasks.make("bus", world=world)
    chunk = max(1, round(main.budget * recipe.meta_updates / main.looks))
    hyper = of_length(recipe, chunk * main.looks)
    module = ALGORITHMS[recipe.algorithm]
    make = getattr(module, recipe.algorithm)
    algorithm = make(family, module.Config(**recipe.config), module.Hyper(**hyper))
    drawn = study.held_out(family, main.eval_tasks)

    @jax.jit
    def look(meta: Any) -> jax.Array:
        told = dict(env=family.env, num_steps=algorithm.lifetime.num_steps)
        key = jax.random.key(study.EVALUATION_SEED + 1)
        trials = evaluation.trials(key, meta, drawn, learner=algorithm.learner, **told)
        return jnp.mean(evaluation.episode_returns(trials, 2), axis=0)

    train, _ = study.trainer(
        study.one(algorithm, 0), algorithm, family, num_tasks=recipe.num_tasks, chunk=chunk
    )
    returns, seconds = [], []
    for seed in range(main.num_seeds):
        run, curve, spent = study.one(algorithm, seed), [], [0.0]
        for _ in range(main.looks):
            trained = train(run, chunk)
            run = trained.run
            spent.append(spent[-1] + trained.seconds)
            curve.append(np.asarray(look(trained.meta)).tolist())
            last = {k: round(float(x[-1]), 3) for k, x in trained.curve.items()}
            study.say(
                f"{world}, {name}, seed {seed}: {spent[-1]:.0f} s, {np.round(curve[-1], 3)}, {last}"
            )
        returns.append(curve)
        seconds.append(spent[1:])
    env_steps = chunk * int(trained.curve["env_steps"][0])
    return {
        "env_steps": [env_steps * (i + 1) for i in range(main.looks)],
        "returns": returns,
        "seconds": seconds,
        "machine": reports.machine(),
    }


def row(world: str, name: str, part: dict[str, Any]) -> dict[str, str]:
    """A learner's row of the table."""
    last = [curve[-1][1] for curve in part["returns"]]
    return {
        "world": world,
        "learner": name,
        "first episode": f"{np.mean([curve[-1][0] for curve in part['returns']]):.2f}",
        "second episode": f"{np.mean(last):.2f}",
        "each seed": ", ".join(f"{x:.2f}" for x in last),
        "steps": study.spaced(part["env_steps"][-1]),
        "training, s": f"{np.mean(part['seconds'], axis=0)[-1]:.0f}",
    }


def run(main: Main) -> None:
    told = main.told("output", "resume", "worlds", "learners")
    table, rows, panels = [], {}, {}
    walking = references.bayes_optimal_bus(num_episodes=1)
    exploring = references.bayes_optimal_bus(num_episodes=2, explore_episodes=1)
    for world in main.worlds:
        panels[world] = {}
        for name in main.learners:
            path = main.output / "learners" / f"{world}-{name}.json"
            part = study.kept(path, told, partial(measure, world, name, main))
            table.append(row(world, name, part))
            rows[f"{world}-{name}"] = part
            mean = np.mean(part["returns"], axis=0)[:, 1].tolist()
            panels[world][name] = (part["env_steps"], mean)
    best = dict(one_episode=walking, after_exploration=exploring)
    study.leave(main, table, csv=table, best=best, learners=rows)
    plotting.lines(main.output / "returns.png", panels, x_label="environment steps")


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
