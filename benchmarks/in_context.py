"""Do learners in context learn what theory says? Decision-pretrained networks and algorithm distillation.

    python benchmarks/in_context.py bandits        # DPT on Bernoulli bandits, beside the exact posterior of the best arm
    python benchmarks/in_context.py rooms          # DPT on Dark Room 10×10, beside exact posterior sampling
    python benchmarks/in_context.py distillation   # algorithm distillation on Dark Room 9×9, from three kinds of histories
    python benchmarks/in_context.py regret         # algorithm distillation on Bernoulli bandits, beside its source

All is measured on held-out tasks with frozen weights.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import study

from jaxmeta import datasets, evaluation, plotting, references, rollouts, tasks
from jaxmeta.algorithms import algorithm_distillation as distillation
from jaxmeta.algorithms import decision_pretrained as dpt
from jaxmeta.algorithms.learned_objective import Hyper as RuleHyper
from jaxmeta.learners import in_context, recurrent, update_rules
from jaxmeta.networks.recurrent import gru, linear_recurrence
from jaxmeta.runs import training
from jaxmeta.tasks import TaskFamily, dark_room
from jaxmeta.types import Learner, Task

HISTORIES = ("mixtures", "episodes", "a2c")
CONTEXTS = {
    "3 wins and a loss; a win and a loss": ((0, 1), (0, 1), (0, 1), (0, 0), (1, 1), (1, 0)),
    "2 wins": ((0, 1), (0, 1)),
    "2 losses": ((0, 0), (0, 0)),
}
"""Contexts by name: pairs of a pulled arm and its payment. The posterior of arm 0 is a fraction after each."""
SAMPLING: dict[str, Literal["step", "refuted"]] = {
    "posterior sampling, a goal a step": "step",
    "posterior sampling, a goal until it is refuted": "refuted",
}
"""Agents of `references.dark_room_sampling`, whose prior is the training goals."""


class Bandits(study.Study):
    """Bernoulli bandits with means U(0, 1)."""

    num_arms: int = 5  # Arms.
    num_pulls: int = 10  # Pulls of a context.
    meta_updates: int = 1500  # Meta-updates.
    num_tasks: Annotated[int, study.multiple_of(4)] = 1024  # Contexts in a meta-update.
    num_seeds: int = 3  # Seeds.
    memory_size: int = 64  # Width of the GRU.
    eval_tasks: int = 10_000  # Held-out bandits.


class Rooms(study.Study):
    """Dark Room, 10×10, 100 steps an episode, start in the corner."""

    meta_updates: int = 1000  # Meta-updates.
    num_tasks: int = 64  # Contexts in a meta-update.
    num_episodes: int = 6  # Episodes of a context.
    num_seeds: int = 1  # Seeds.
    memory_size: int = 96  # Width of the GRU.
    eval_tasks: int = 500  # Held-out tasks.
    learned: bool = True  # Train DPT; else measure the agents of `references` alone.


class Distillation(study.Study):
    """Dark Room, 9×9, 20 steps an episode, start in the centre."""

    histories: Annotated[study.Names, study.known(HISTORIES)] = HISTORIES
    """The source of the histories: an expert that acts at random in fewer and fewer steps, or episodes; A2C."""
    num_histories: int = 16  # Histories in each of the 65 training tasks.
    num_episodes: int = 40  # Episodes of a history, and of a trial.
    meta_updates: int = 1000  # Meta-updates.
    num_tasks: int = 16  # Windows in a meta-update.
    num_seeds: int = 1  # Seeds.
    memory_size: int = 128  # Width of the two layers of the linear recurrence.
    eval_tasks: int = 500  # Held-out tasks.


class Regret(study.Study):
    """Bernoulli bandits with means U(0, 1), a pull an episode."""

    num_arms: int = 5  # Arms.
    num_pulls: int = 300  # Pulls of a history; A2C learns after each.
    step_size: Annotated[float, study.within(0.0, 1.0)] = 0.01  # Of A2C.
    every: int = 4  # The network learns from every k-th pull.
    eval_pulls: int = 150  # Pulls of a trial, which may be more than the network has learned from.
    train_tasks: int = 4000  # Training bandits, a history each.
    meta_updates: int = 1500  # Meta-updates.
    num_tasks: int = 64  # Histories in a meta-update.
    num_seeds: int = 3  # Seeds.
    memory_size: int = 48  # Width of the GRU.
    eval_tasks: int = 4000  # Held-out bandits.


def trained(algorithm: Any, family: TaskFamily, told: Any, seed: int, source: Any = None) -> Any:
    """``(meta, seconds)`` after training, compiling included."""
    plan = training.Config(meta_updates=told.meta_updates, num_tasks=told.num_tasks, seed=seed)
    began = time.perf_counter()
    run = training.train(algorithm, family, plan, source=source)
    return run.state.meta, time.perf_counter() - began


def returns(
    learner: Learner, meta: Any, drawn: Task, family: TaskFamily, num_episodes: int
) -> np.ndarray:
    """Returns of the episodes of a trial in each task, ``[M, E]``."""
    steps = num_episodes * family.horizon
    how = dict(learner=learner, env=family.env, num_steps=steps, tasks_per_chunk=250)

    def measure(key: jax.Array, meta: Any) -> jax.Array:
        trials = evaluation.trials(key, meta, drawn, **how)
        return evaluation.episode_returns(trials, num_episodes)

    return np.asarray(jax.jit(measure)(jax.random.key(study.EVALUATION_SEED), meta))


def mean(scores: np.ndarray, digits: int = 2) -> str:
    """The mean over seeds and tasks ``[S, M]``, with its interval."""
    return study.with_interval(scores.mean(), *evaluation.mean_interval(scores), digits=digits)


# Bandits


def exact_posterior(data: Any, num_arms: int) -> jax.Array:
    """The posterior of the best arm before each pull of contexts ``[B, T]``, ``[B, T, A]``."""
    chosen = jax.nn.one_hot(data.action, num_arms)
    paid = chosen * data.reward[..., None]
    before = [jnp.cumsum(x, axis=1) - x for x in (paid, chosen)]
    return jax.vmap(jax.vmap(lambda r, n: references.posterior_best_arm(r, n, num_nodes=32)))(
        *before
    )


def divergence(
    meta: Any, algorithm: Any, family: TaskFamily, drawn: Task, predict: Any, share: float
) -> np.ndarray:
    """Mean KL, in nats, of the exact posterior to the network's before each pull, ``[T]``."""
    behaviour = dpt.roll_in(algorithm.learner, family, share)
    setup = rollouts.Setup(behaviour, family.env, 1, family.horizon)

    def measure(key: jax.Array, meta: Any) -> jax.Array:
        data = recurrent.trials_of(key, meta, drawn, setup=setup)
        log_q = jax.vmap(predict, (None, 0))(meta, data).log_probs()
        p = exact_posterior(data, family.action_space.n)
        gap = jnp.log(jnp.maximum(p, 1e-30)) - log_q
        return jnp.mean(jnp.sum(jnp.where(p > 0, p * gap, 0.0), axis=-1), axis=0)

    return np.asarray(jax.jit(measure)(jax.random.key(study.EVALUATION_SEED), meta))


def beliefs(meta: Any, family: TaskFamily, predict: Any) -> dict[str, tuple[float, float]]:
    """The probabilities of arm 0 by the network and by the exact posterior after each of `CONTEXTS`."""
    found = {}
    for name, pulls in CONTEXTS.items():
        arms, paid = (np.asarray(x) for x in zip(*pulls, (0, 0), strict=True))
        setup = rollouts.Setup(
            references.random_agent(num_actions=family.action_space.n), family.env, 1, len(arms)
        )
        one = rollouts.sample(jax.random.key(0), (), family.env.default_params, (), setup=setup)
        data = jax.tree.map(lambda x: x[0], one)
        action, reward = jnp.asarray(arms, jnp.int32), jnp.asarray(paid, float)
        before = data.timestep._replace(
            action=jnp.append(jnp.zeros(1, jnp.int32), action[:-1]),
            reward=jnp.append(jnp.zeros(1), reward[:-1]),
            first=jnp.arange(len(arms)) == 0,
        )
        data = data._replace(timestep=before, action=action, reward=reward)
        batch = jax.tree.map(lambda x: x[None], data._replace(memory=()))
        exact = exact_posterior(batch, family.action_space.n)[0, -1, 0]
        found[name] = (float(jnp.exp(predict(meta, data).log_probs()[-1, 0])), float(exact))
    return found


def bandits(told: Bandits) -> None:
    """DPT is posterior sampling."""
    # One more pull, so that the prediction after all pulls is trained, too.
    longer, family = (
        tasks.make("bernoulli_bandit", num_arms=told.num_arms, num_pulls=told.num_pulls + more)
        for more in (1, 0)
    )
    drawn = study.held_out(family, told.eval_tasks)
    memory, config = (
        gru(told.memory_size),
        dpt.Config(num_episodes=1, hidden_sizes=(64,), num_minibatches=4),
    )
    hyper = dpt.Hyper(learning_rate=3e-3, anneal_updates=told.meta_updates)
    predict = in_context.predictions(longer, config, memory=memory)
    algorithm = dpt.decision_pretrained(longer, config, hyper, memory=memory)
    runs = [trained(algorithm, longer, told, seed) for seed in range(told.num_seeds)]
    gaps = {
        name: np.stack([divergence(x, algorithm, longer, drawn, predict, share) for x, _ in runs])
        for name, share in (("random", 1.0), ("its own", 0.0))
    }
    earned: dict[str, np.ndarray] = {}
    for name, acts in (("DPT, draws", "sample"), ("DPT, most probable arm", "mode")):
        as_told = dataclasses.replace(config, acts=acts)
        learner = dpt.decision_pretrained(family, as_told, memory=memory).learner
        earned[name] = np.stack([returns(learner, x, drawn, family, 1)[:, 0] for x, _ in runs])
    for name, greedy in (("exact posterior, draws", False), ("exact, most probable arm", True)):
        agent = references.posterior_sampling(num_arms=told.num_arms, greedy=greedy)
        earned[name] = returns(agent, (), drawn, family, 1)[:, 0][None]
    lines = [(name, mean(scores, 3)) for name, scores in earned.items()]
    table = study.markdown((f"{told.num_arms} arms, {told.num_pulls} pulls", "return"), lines)
    rows = [
        (name, f"{gap.mean():.4f}", f"{gap.mean(axis=0).max():.4f}") for name, gap in gaps.items()
    ]
    names = "contexts", "KL to the exact posterior, nats, mean", "at the worst number of pulls"
    said = beliefs(runs[0][0], longer, predict)
    told_of = [(name, f"{ours:.3f}", f"{exact:.4f}") for name, (ours, exact) in said.items()]
    table += ["", *study.markdown(names, rows)]
    table += ["", *study.markdown(("context", "DPT: arm 0 is best", "exact"), told_of)]
    seconds = [x for _, x in runs]
    study.leave(
        told, table, seconds=seconds, beliefs=said, kl={k: x.tolist() for k, x in gaps.items()}
    )


# Dark Room


def rooms(told: Rooms) -> None:
    """DPT beside exact posterior sampling."""
    family = tasks.make("dark_room", size=10, horizon=100, start="corner", observes="coordinates")
    config = dpt.Config(
        num_episodes=told.num_episodes, encoder_sizes=(64,), hidden_sizes=(128,), num_minibatches=2
    )
    memory = gru(told.memory_size)
    hyper = dpt.Hyper(learning_rate=2e-3, anneal_updates=told.meta_updates)
    algorithm = dpt.decision_pretrained(family, config, hyper, memory=memory)
    num_seeds = told.num_seeds if told.learned else 0
    runs = [trained(algorithm, family, told, seed) for seed in range(num_seeds)]
    lines = []
    for split in ("train", "test"):
        drawn = tasks.sample_tasks(jax.random.key(7), family, told.eval_tasks, split=split)
        best = float(jax.vmap(family.optimal_return)(drawn).mean())
        agents = [("DPT", algorithm.learner, [x for x, _ in runs])] if told.learned else []
        for name, draw in SAMPLING.items():
            agents.append((name, references.dark_room_sampling(size=10, draw=draw), [()]))
        for name, learner, metas in agents:
            each_seed = [returns(learner, x, drawn, family, told.num_episodes) for x in metas]
            found = np.stack(each_seed)
            each = [mean(found[..., e], 1) for e in range(told.num_episodes)]
            lines.append((f"{name}, {split} goals", *each, f"{best:.1f}"))
    names = ("agent", *(f"episode {e + 1}" for e in range(told.num_episodes)), "optimum")
    study.leave(told, study.markdown(names, lines), seconds=[x for _, x in runs])


def every_goal(family: TaskFamily) -> Task:
    """The training tasks of Dark Room 9×9, one for each goal, ``[65]``."""
    goals = dark_room.goals(split="train")
    some = tasks.sample_tasks(jax.random.key(0), family, len(goals), split="train")
    return some.replace(goal=jnp.asarray(goals))


def histories_of(kind: str, family: TaskFamily, told: Distillation) -> datasets.Histories:
    """The histories of one kind, in all training tasks."""
    drawn, key = every_goal(family), jax.random.key(1)
    how = dict(family=family, num_streams=told.num_histories, num_episodes=told.num_episodes)
    if kind in ("mixtures", "episodes"):
        draw = "step" if kind == "mixtures" else "episode"
        return jax.jit(lambda key: datasets.mixtures(key, drawn, draw=draw, **how))(key)
    learner = update_rules.rule_learner(
        update_rules.a2c(), family, hidden_sizes=(32,), optimizer=optax.adam
    ).learner
    meta = update_rules.Meta({}, RuleHyper(discount=0.95, step_size=0.02, entropy_cost=0.02))
    setup = rollouts.Setup(learner, family.env, told.num_histories, family.horizon)
    # All histories of a task are streams of one agent, which learns after an episode of each.
    how = dict(setup=setup, num_updates=told.num_episodes - 1, restart=True)
    return jax.jit(lambda key: datasets.record(key, meta, drawn, **how))(key)


def distilled(told: Distillation) -> None:
    """Return by episode of algorithm distillation, of its source, and of the control with windows of one episode."""
    family = tasks.make("dark_room", observes="coordinates")
    drawn = study.held_out(family, told.eval_tasks)
    best = float(jax.vmap(family.optimal_return)(drawn).mean())
    memory = linear_recurrence(told.memory_size, num_layers=2)
    config = distillation.Config(
        num_episodes=told.num_episodes, encoder_sizes=(64,), hidden_sizes=(128,)
    )
    hyper = distillation.Hyper(learning_rate=3e-3, anneal_updates=told.meta_updates)
    algorithm = distillation.algorithm_distillation(family, config, hyper, memory=memory)
    panels: dict[str, dict[str, Any]] = {}
    lines, seconds = [], {}
    for kind in told.histories:
        lived = histories_of(kind, family, told)
        source = datasets.quality(jax.random.key(5), lived, family=family)
        shown: dict[str, Any] = {
            "histories": share_of(source.returns[None, None] / source.reference)
        }
        episodes = {"windows of all episodes": told.num_episodes, "windows of one episode": 1}
        for name, length in episodes.items():
            windows = datasets.windows(lived, length * family.horizon, starts="episode")
            runs = [
                trained(algorithm, family, told, seed, windows) for seed in range(told.num_seeds)
            ]
            scores = np.stack(
                [returns(algorithm.learner, x, drawn, family, told.num_episodes) for x, _ in runs]
            )
            shown[name] = share_of(scores / best)
            last = scores[..., -5:].mean(axis=-1)
            first = scores[..., 0]
            cells = (mean(first), mean(last), f"{last.mean() / best:.3f}")
            lines.append((kind, name, *cells))
            seconds[f"{kind}, {name}"] = [x for _, x in runs]
        panels[kind] = {"contestants": shown}
    names = "histories", "trained on", "episode 1", "last five episodes", f"share of {best:.2f}"
    study.leave(told, study.markdown(names, lines), seconds=seconds, curves=panels)
    labels = {"x_label": "episodes", "y_label": "share of the optimum"}
    plotting.lifetimes(told.output / "distillation.png", panels, **labels)


def share_of(scores: np.ndarray) -> Mapping[str, Any]:
    """A line of `plotting.lifetimes` from shares of the optimum ``[S, M, E]``."""
    number, means = scores.shape[2], scores.mean(axis=(0, 1))
    if scores.shape[1] > 1:
        intervals = [evaluation.mean_interval(scores[..., e]) for e in range(number)]
    else:
        intervals = [(x, x) for x in means]
    return {
        "x": list(range(1, number + 1)),
        "mean": means.tolist(),
        "intervals": [[float(x) for x in y] for y in intervals],
    }


def bandit_histories(
    key: jax.Array, drawn: Task, family: TaskFamily, told: Regret
) -> datasets.Histories:
    """What A2C lives through in each bandit, ``[M, 1, T]``; it learns after each pull."""
    learner = update_rules.rule_learner(
        update_rules.a2c(), family, hidden_sizes=(), optimizer=optax.adam
    ).learner
    meta = update_rules.Meta(
        {}, RuleHyper(discount=0.95, step_size=told.step_size, entropy_cost=0.0)
    )
    how = dict(
        setup=rollouts.Setup(learner, family.env, num_streams=1, num_steps=1),
        num_updates=told.num_pulls - 1,
        tasks_per_chunk=250,
    )
    return jax.jit(lambda key: datasets.record(key, meta, drawn, **how))(key)


def regret(told: Regret) -> None:
    """Regret by pull of algorithm distillation and of its source, on held-out bandits."""
    family = tasks.make("bernoulli_bandit", num_arms=told.num_arms, num_pulls=1)
    source_key, train_key, held_out_key = jax.random.split(jax.random.key(0), 3)
    drawn = tasks.sample_tasks(train_key, family, told.train_tasks, split="train")
    lived = datasets.thin(bandit_histories(source_key, drawn, family, told), every=told.every)
    length = lived.data.reward.shape[-1]
    config = distillation.Config(num_episodes=told.eval_pulls)
    hyper = distillation.Hyper(learning_rate=3e-3, anneal_updates=told.meta_updates)
    memory = gru(told.memory_size)
    algorithm = distillation.algorithm_distillation(family, config, hyper, memory=memory)
    windows = datasets.windows(lived, length, starts="episode")
    runs = [trained(algorithm, family, told, seed, windows) for seed in range(told.num_seeds)]

    held_out = study.held_out(family, told.eval_tasks)
    best = np.asarray(jnp.max(held_out.mean, axis=1))[None, :, None]
    source = bandit_histories(held_out_key, held_out, family, told)
    paid = [returns(algorithm.learner, meta, held_out, family, told.eval_pulls) for meta, _ in runs]
    lost = {
        "A2C": best - np.asarray(source.data.reward[:, 0])[None],
        "algorithm distillation": best - np.stack(paid),
    }
    last = 10  # the pulls over which regret is averaged
    final = lost["A2C"][..., -last:].mean()
    lines = []
    for name, each in lost.items():
        smooth = [each[..., t : t + last].mean() for t in range(each.shape[-1] - last + 1)]
        there = next((t + last for t, x in enumerate(smooth) if x <= final), None)
        cells = (mean(each[..., -last:].mean(axis=-1), 3), mean(each.sum(axis=-1), 1))
        lines.append((name, str(each.shape[-1]), *cells, "never" if there is None else str(there)))
    names = (
        "learner",
        "pulls",
        f"regret of the last {last}",
        "of all its pulls",
        "at A2C's last after",
    )
    curves = {name: each.mean(axis=(0, 1)).tolist() for name, each in lost.items()}
    study.leave(told, study.markdown(names, lines), seconds=[x for _, x in runs], curves=curves)


if __name__ == "__main__":
    study.main({Bandits: bandits, Rooms: rooms, Distillation: distilled, Regret: regret}, __doc__)
