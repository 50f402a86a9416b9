"""Do off-policy learners with continuous actions need fewer environment steps? Recurrent SAC and PEARL beside RL² by PPO and MAML.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/off_policy.py
    python benchmarks/off_policy.py --contests sparse --learners pearl

The family is the point robot of PEARL, a goal on the half circle. Each contest has its number of
episodes in a held-out trial; before episode k the learner has seen k trajectories. MAML takes a gradient step on N of them at a
time, so it is measured after 0, N, 2 N... *The way* goes from the random agent's return to the
return of the agent that is told the goal. *Steps to it* are the environment steps of training up to a look. It is the first look at which the
seeds' mean return of the last episode reaches the level. In the sparse contest PEARL learns values of the dense reward, as published, and its
encoder is taught by it; RL² and MAML have the sparse reward alone. CPU seconds are of training one seed, without compiling and without the looks.

Each learner is kept in learners/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import evaluation, plotting, tasks
from jaxmeta.algorithms import maml, pearl, recurrent_sac, rl2
from jaxmeta.runs import reports
from jaxmeta.tasks import TaskFamily, navigation
from jaxmeta.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True)
class Learner:
    """An algorithm with its settings, and how long it is trained."""

    make: Callable[..., MetaAlgorithm]
    config: Any
    hyper: Any
    num_tasks: int
    meta_updates: int
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def algorithm(self, family: TaskFamily) -> MetaAlgorithm:
        """The algorithm on a family."""
        return self.make(family, self.config, self.hyper, **self.arguments)


@dataclasses.dataclass(frozen=True)
class Contest:
    """A reward, the episodes of a held-out trial, and the learners."""

    reward: str
    episodes: int
    learners: Mapping[str, Learner]


_PEARL = pearl.Config(
    num_episodes=2,
    num_streams=3,
    gradient_steps=48,
    batch_size=32,
    context_size=60,
    hidden_sizes=(64, 64),
    num_training_tasks=80,
)


def _recurrent_sac(**settings: Any) -> Learner:
    """Recurrent SAC on trials of two episodes."""
    config = recurrent_sac.Config(num_episodes=2, gradient_steps=32, replayed_trials=16, **settings)
    hyper = recurrent_sac.Hyper(learning_rate=2e-3)
    return Learner(recurrent_sac.recurrent_sac, config, hyper, num_tasks=4, meta_updates=320)


def _ppo(episodes: int, entropy_cost: float) -> Learner:
    """RL² by PPO, trained on trials like the held-out ones."""
    config = rl2.Config(num_episodes=episodes, hidden_sizes=(64,))
    hyper = rl2.Hyper(learning_rate=3e-3, gae_lambda=0.9, entropy_cost=entropy_cost)
    return Learner(rl2.rl2, config, hyper, num_tasks=32, meta_updates=400)


def _maml(streams: int, updates: int, step_size: float, meta_updates: int) -> Learner:
    """MAML, trained by as many gradient steps on as many trajectories as it has on held-out tasks."""
    config = maml.Config(num_streams=streams, num_updates=updates)
    hyper = maml.Hyper(step_size=step_size)
    return Learner(maml.maml, config, hyper, num_tasks=40, meta_updates=meta_updates)


CONTESTS = {
    "memory": Contest(
        "distance",
        2,
        {
            "rl2": _ppo(2, 0.0),
            "recurrent_sac": _recurrent_sac(),
            "recurrent_sac_cloning": _recurrent_sac(filtered_cloning=True),
        },
    ),
    "dense": Contest(
        "distance",
        4,
        {
            "rl2": _ppo(4, 0.0),
            "maml": _maml(
                3, 1, 0.1, 200
            ),  # one trajectory alone says too little for a gradient step
            "pearl": Learner(
                pearl.pearl,
                _PEARL,
                pearl.Hyper(learning_rate=2e-3, kl_cost=1e-4, discount=0.95, anneal_updates=240.0),
                num_tasks=8,
                meta_updates=240,
            ),
        },
    ),
    "sparse": Contest(
        "sparse",
        10,
        {
            "rl2": _ppo(10, 0.01),
            "maml": _maml(3, 3, 0.5, 100),
            # Alone in a task for a trial as long as the held-out ones. A teacher, as a first episode rarely passes the goal.
            "pearl": Learner(
                pearl.pearl,
                dataclasses.replace(
                    _PEARL,
                    num_episodes=10,
                    num_streams=1,
                    context_from="trial",
                    context_size=200,
                    encoder_learns="teacher",
                ),
                pearl.Hyper(
                    learning_rate=2e-3,
                    kl_cost=1e-4,
                    discount=0.9,
                    max_grad_norm=100.0,
                    anneal_updates=330.0,
                ),
                num_tasks=8,
                meta_updates=300,
                arguments={"training_reward": navigation.dense_reward},
            ),
        },
    ),
}
ALGORITHMS = tuple(dict.fromkeys(name for x in CONTESTS.values() for name in x.learners))


class Main(study.Study):
    """Learners with continuous actions, contest by contest."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    contests: Annotated[study.Names, study.known(CONTESTS)] = tuple(CONTESTS)
    learners: Annotated[study.Names, study.known(ALGORITHMS)] = ALGORITHMS
    num_seeds: int = 3  # Seeds, trained one after the other.
    looks: int = 20  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each learner's own."""
    level: Annotated[float, study.within(0.0, 1.0)] = 0.9
    """The share of the way that is to be gone."""
    eval_tasks: int = 200  # Held-out tasks; there are 20 goals.


def measure(contest: Contest, name: str, main: Main) -> dict[str, Any]:
    """Held-out returns after so many trajectories at every look, ``[S, looks, K]``, with the steps and CPU seconds up to each."""
    told, episodes = contest.learners[name], contest.episodes
    family = tasks.make("half_circle", reward=contest.reward)
    algorithm = told.algorithm(family)
    planned = max(1, round(main.budget * told.meta_updates))
    chunk = max(1, planned // main.looks)
    drawn = study.held_out(family, main.eval_tasks)
    random, known = (
        float(jnp.mean(jnp.asarray(x)))
        for x in study.references(jax.random.split(jax.random.key(1)), drawn, family)
    )

    # A learner without memory learns from N trajectories at a time.
    lifetime: Any = algorithm.lifetime
    each = 1 if lifetime.trial else lifetime.num_streams

    @jax.jit
    def look(meta: Any) -> jax.Array:
        key = jax.random.key(study.EVALUATION_SEED + 1)
        if not lifetime.trial:
            how = dict(num_streams=each, num_updates=(episodes - 1) // each)
            adapted = study.adapted(key, meta, drawn, algorithm, family, **how)
            return jnp.mean(adapted, axis=0)
        num_steps = episodes * family.horizon
        trials = evaluation.trials(
            key, meta, drawn, learner=algorithm.learner, env=family.env, num_steps=num_steps
        )
        return jnp.mean(evaluation.episode_returns(trials, episodes), axis=0)

    train, _ = study.trainer(
        study.one(algorithm, 0), algorithm, family, num_tasks=told.num_tasks, chunk=chunk
    )
    returns, seconds = [], []
    for seed in range(main.num_seeds):
        run, curve, spent = study.one(algorithm, seed), [], [0.0]
        for _ in range(planned // chunk):
            began = time.process_time()
            trained = train(run, chunk)
            run = trained.run
            spent.append(spent[-1] + time.process_time() - began)
            curve.append(np.asarray(look(trained.meta), float).tolist())
            study.say(f"  {name}, seed {seed}: {spent[-1]:.0f} s, {np.round(curve[-1], 2)}")
        returns.append(curve)
        seconds.append(spent[1:])
    env_steps = chunk * int(trained.curve["env_steps"][0])
    return {
        "env_steps": [env_steps * (i + 1) for i in range(len(returns[0]))],
        "trajectories": list(range(0, episodes, each)),
        "returns": returns,
        "random": random,
        "told": known,
        "cpu_seconds": seconds,
        "machine": reports.machine(),
    }


def shares(part: dict[str, Any]) -> np.ndarray:
    """The shares of the way of a learner's returns, ``[S, looks, K]``."""
    return (np.asarray(part["returns"]) - part["random"]) / (part["told"] - part["random"])


def row(name: str, part: dict[str, Any], level: float, equal: int) -> dict[str, str]:
    """A learner's row of the table; ``equal`` are the environment steps after which all learners of its contest are compared."""
    steps, share = part["env_steps"], shares(part)
    mean = share.mean(axis=0)
    at = next((i for i, x in enumerate(mean[:, -1]) if x >= level), None)
    there = max((i for i, x in enumerate(steps) if x <= equal), default=0)
    cpu = np.mean(part["cpu_seconds"], axis=0)

    # After the first three and after all.
    columns = [i for i, x in enumerate(part["trajectories"]) if x <= 3 or i == mean.shape[1] - 1]
    if len(part["trajectories"]) <= 4:
        columns = list(range(mean.shape[1]))

    def shown(values: np.ndarray) -> str:
        return ", ".join(f"{values[i]:.2f}" for i in columns)

    last = share[:, -1, -1]
    return {
        "learner": name,
        f"steps to {level:g} of the way": f"more than {study.spaced(steps[-1])}"
        if at is None
        else study.spaced(steps[at]),
        "CPU seconds to it": "" if at is None else f"{cpu[at]:.0f}",
        "at equal steps": study.spaced(steps[there]),
        "after trajectories": ", ".join(str(part["trajectories"][i]) for i in columns),
        "return": shown(np.mean(part["returns"], axis=0)[there]),
        "share of the way": shown(mean[there]),
        "at the end": study.spaced(steps[-1]),
        "share then": shown(mean[-1]),
        "seeds, last episode": f"{last.min():.2f} to {last.max():.2f}",
        "CPU seconds": f"{cpu[-1]:.0f}",
    }


def run(main: Main) -> None:
    told = main.told("output", "resume", "contests", "learners", "level")
    table: list[dict[str, str]] = []
    rows: dict[str, Any] = {}
    panels: dict[str, Any] = {}
    for title in main.contests:
        contest = CONTESTS[title]
        parts = {
            f"{name}-{title}": study.kept(
                main.output / "learners" / f"{name}-{title}.json",
                told,
                partial(measure, contest, name, main),
            )
            for name in contest.learners
            if name in main.learners
        }
        if not parts:
            continue
        equal = min(part["env_steps"][-1] for part in parts.values())
        table += [row(name, part, main.level, equal) for name, part in parts.items()]
        rows |= parts
        panels[title] = {
            name: (part["env_steps"], shares(part).mean(axis=0)[:, -1].tolist())
            for name, part in parts.items()
        }
    study.leave(main, table, csv=table, learners=rows)
    plotting.lines(main.output / "steps.png", panels, x_label="environment steps")


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
