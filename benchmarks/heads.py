"""Do hypernetwork heads or a permutation-invariant memory help RL²? Beside the plain network, with as many parameters.

    python benchmarks/heads.py
    python benchmarks/heads.py --contests gridnavi --networks plain hypernetwork

`hypernetwork` is bias-HyperInit, whose policy has weights made by the memory's output. `split aggregation` sends half of the memory's
outputs through a running maximum. The plain network has the smallest GRU with which it has no fewer parameters than the hypernetwork.
A score is the return of all episodes of a held-out trial: 0 is the random agent, 1 the Bayes-optimal agent on GridNavi, the agent that knows the best arm on
bandits, and a pole that never falls. Settings of RL² were chosen for plain networks.

The interval is over tasks. Each network is kept in parts/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import study

from jaxmeta import evaluation, references, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.networks import actor_critic, hypernetworks
from jaxmeta.networks.actor_critic import ActorCritic
from jaxmeta.networks.heads import Head
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import reports
from jaxmeta.tasks import TaskFamily

ENCODER = 32
"""Units of the layer before the memory, whose output the policy reads, too."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """A family, the settings of RL² on it, and the best mean return of a trial in held-out tasks ``[M]``."""

    family: Callable[[], TaskFamily]
    config: Config
    hyper: Hyper
    num_tasks: int
    meta_updates: int
    best: Callable[[Any], Any]


def bandits(num_pulls: int, num_tasks: int) -> Contest:
    """Bandits of five arms."""
    return Contest(
        partial(tasks.make, "bernoulli_bandit", num_arms=5, num_pulls=num_pulls),
        Config(),
        Hyper(learning_rate=3e-3, discount=1.0, gae_lambda=0.9, entropy_cost=0.02),
        num_tasks,
        150,
        lambda drawn: num_pulls * drawn.mean.max(axis=1).mean(),
    )


CONTESTS = {
    "gridnavi": Contest(
        partial(tasks.make, "gridnavi"),
        Config(num_episodes=4),
        Hyper(learning_rate=3e-3, entropy_cost=0.05),
        128,
        150,
        lambda _: references.bayes_optimal_gridnavi(num_episodes=4, num_steps=15),
    ),
    "bandits 5,20": bandits(20, 512),
    "bandits 5,100": bandits(100, 256),
    "cart-poles": Contest(
        partial(tasks.make, "cartpole", horizon=100, scale=3.0),
        Config(num_episodes=2, num_minibatches=4),
        Hyper(learning_rate=1e-3),
        64,
        150,
        lambda _: 200.0,
    ),
}


def hypernetwork(family: TaskFamily, size: int) -> ActorCritic:
    """The policy's weights are made by a GRU's output."""

    def head(num_features: int) -> Head:
        return hypernetworks.hyper_head(num_features, family.action_space, size, ())

    return actor_critic.recurrent_actor_critic(
        family, gru(size), encoder_sizes=(ENCODER,), head=head
    )


def split_aggregation(family: TaskFamily, size: int) -> ActorCritic:
    """A running maximum over half of a GRU's outputs."""
    memory = hypernetworks.split_aggregation(gru(size))
    return actor_critic.recurrent_actor_critic(family, memory, encoder_sizes=(ENCODER,))


def plain(family: TaskFamily, size: int) -> ActorCritic:
    """A GRU."""
    return actor_critic.recurrent_actor_critic(family, gru(size), encoder_sizes=(ENCODER,))


NETWORKS = {
    "plain": plain,
    "hypernetwork": hypernetwork,
    "split aggregation": split_aggregation,
}


class Heads(study.Study):
    """Networks of RL²."""

    resume: bool = False  # Keep the networks that are in the folder and measure the others.
    contests: Annotated[study.Names, study.known(CONTESTS)] = tuple(CONTESTS)
    networks: Annotated[study.Names, study.known(NETWORKS)] = tuple(NETWORKS)
    num_seeds: int = 3  # Seeds, trained as one program.
    memory_size: Annotated[int, study.multiple_of(2)] = 32  # Units of the hypernetwork's GRU.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each contest's own."""
    eval_tasks: int = 1000  # Held-out tasks.


def count(network: ActorCritic) -> int:
    """The number of parameters."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def as_large(name: str, family: TaskFamily, size: int) -> ActorCritic:
    """The smallest network of a kind that has no fewer parameters than a hypernetwork of ``size``."""
    wanted = count(hypernetwork(family, size))
    while count(found := NETWORKS[name](family, size)) < wanted:
        size += 2
    return found


def measure(told: Heads, contest: Contest, name: str) -> dict[str, Any]:
    """Returns of held-out trials after training, ``[S, M]``."""
    family = contest.family()
    network = as_large(name, family, told.memory_size)
    updates = max(1, round(told.budget * contest.meta_updates))
    hyper = contest.hyper._replace(anneal_updates=updates)
    algorithm = rl2(family, contest.config, hyper, network=network)
    assert algorithm.lifetime is not None
    num_steps = algorithm.lifetime.num_steps
    num_episodes = num_steps // family.horizon
    drawn = study.held_out(family, told.eval_tasks)
    runs = study.seeds(algorithm, told.num_seeds)
    train, _ = study.trainer(runs, algorithm, family, num_tasks=contest.num_tasks, chunk=updates)
    began = time.process_time()
    trained = train(runs, updates)
    spent = time.process_time() - began

    @jax.jit
    def look(meta: Any) -> jax.Array:
        key = jax.random.key(study.EVALUATION_SEED + 1)
        trials = evaluation.trials(
            key, meta, drawn, learner=algorithm.learner, env=family.env, num_steps=num_steps
        )
        return evaluation.episode_returns(trials, num_episodes).sum(axis=1)

    returns = np.asarray(jax.lax.map(look, trained.meta))
    random = study.returns_of(evaluation.random_returns, jax.random.key(0), drawn, family)
    study.say(f"{name}: {count(network)} parameters, {spent:.0f} s, {returns.mean(axis=1)}")
    return {
        "returns": returns.tolist(),
        "random": float(random.mean()) * num_episodes,
        "best": float(contest.best(drawn)),
        "parameters": count(network),
        "env_steps": updates * int(np.ravel(trained.curve["env_steps"])[0]),
        "cpu_seconds": spent / told.num_seeds,
        "machine": reports.machine(),
    }


def main(told: Heads) -> None:
    settings = told.told("output", "resume", "contests", "networks")
    table, parts = [], {}
    for of, name in itertools.product(told.contests, told.networks):
        path = told.output / "parts" / f"{of}-{name}.json"
        part = study.kept(path, settings, partial(measure, told, CONTESTS[of], name))
        low, high = part["random"], part["best"]
        scores = (np.asarray(part["returns"], float) - low) / (high - low)
        mean, interval = scores.mean(), evaluation.bootstrap_interval(scores.mean(axis=0))
        table.append(
            {
                "family": of,
                "network": name,
                "score (95 %)": study.with_interval(mean, *interval, digits=3),
                "each seed": ", ".join(f"{x:.3f}" for x in scores.mean(axis=1)),
                "parameters": study.spaced(part["parameters"]),
                "environment steps": study.spaced(part["env_steps"]),
                "training, CPU s": f"{part['cpu_seconds']:.0f}",
            }
        )
        parts[f"{of}-{name}"] = part
    study.leave(told, table, csv=table, parts=parts)


if __name__ == "__main__":
    study.main({Heads: main}, __doc__)
