"""Learned objectives: does a learned update rule beat a tuned one, does it carry over, what does it cost?

    python benchmarks/learned_objective.py train --output runs/lpg
    python benchmarks/learned_objective.py memory --output runs/lifetime-memory

`train` meta-trains LPG on random MDPs and grid worlds, then follows the rule, as it is, through whole
lifetimes: in held-out tasks of both families against A2C, whose settings are tuned on training tasks for
lifetimes of the same length; and in Catch and CartPole, which it has never met, with other networks. The
step size of the agents' optimiser is chosen for both. `memory` measures what a compiled meta-gradient
through lifetimes of several lengths takes, for LPG, OPEN and DiscoRL: truncated, by evolution, and through
the whole lifetime.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import study

from jaxmeta import evaluation, plotting, rollouts, tasks
from jaxmeta.algorithms import learned_objective
from jaxmeta.algorithms.learned_objective import Config, Hyper
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.learners import disco, learned_optimizers, update_rules
from jaxmeta.learners.update_rules import Meta, RuleLearner, UpdateRule
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm, Task

# A square root has a derivative where gradients are zero only if something is added inside of it.
OPTIMIZERS = {"sgd": optax.sgd, "adam": partial(optax.adam, eps_root=1e-8)}
LINEAR = {"sgd": (3.0, 10.0, 30.0, 100.0), "adam": (0.05, 0.1, 0.2, 0.4, 0.8)}
NETWORK = {"adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
CHOSEN = ("step_size", "gae_lambda", "entropy_cost")  # settings of agents that are chosen
EPISODES = 20  # of an agent, each time that it is looked at
CHECKPOINTS = 25  # looks at an agent in its life, beside that at its birth
PLACES = ("random MDPs", "grid worlds", "Catch", "CartPole")
Positive = Annotated[float, study.within(0, 1e6)]
Lifespan = Annotated[int, study.multiple_of(CHECKPOINTS)]


class Train(study.Study):
    """LPG on random MDPs and grid worlds against tuned A2C."""

    output: study.Output = Path("runs/learned-objective")
    meta_updates: int = 1800  # Meta-updates on each of the two families, in turns.
    outer: Literal["meta_gradient", "es", "pes"] = "meta_gradient"  # How the rule is learned.
    num_agents: int = 32  # Lives in each family.
    lifespan: Lifespan = 50  # Updates of a lifetime, in training and in held-out tasks.
    transfer_lifespan: Lifespan = 500  # Updates of a lifetime in Catch and CartPole.
    num_streams: int = 4  # Streams of an agent.
    num_steps: int = 20  # Steps of every stream between updates.
    learning_rate: Positive = 4e-3  # Of the rule, at first; it falls to a tenth along a cosine.
    step_size: Positive = 0.2  # Of Adam in the agents that follow LPG.
    window: int = 50
    """Updates that a meta-update looks at: a whole life, or the rule does not learn what only pays later."""
    gae_lambdas: Annotated[study.Numbers, study.within(0, 1)] = (0.5, 0.8, 0.95)
    """λ that A2C may choose from, with every step size."""
    entropy_costs: Annotated[study.Numbers, study.within(0, 1e6)] = (0.0, 0.01, 0.05)
    """Weights of A2C's entropy, likewise."""
    tune_tasks: int = 50  # Training tasks that settings are chosen on.
    eval_tasks: int = 1000  # Held-out tasks.
    transfer_agents: int = 20  # Agents in Catch and CartPole.
    compare_on: Annotated[study.Names, study.known(PLACES)] = PLACES
    """Places; the last two are new to the rule."""
    seed: int = 0


def families() -> dict[str, TaskFamily]:
    """The families that the rule is trained on."""
    sizes = dict(num_states=8, num_actions=4, reward_noise=0.5)
    return {
        "random MDPs": tasks.make("tabular", horizon=20, **sizes),
        "grid worlds": tasks.make("gridworld", size=4, horizon=20, num_objects=4),
    }


def unknown_families() -> dict[str, TaskFamily]:
    """The families that it is then tried on."""
    return {"Catch": tasks.make("catch"), "CartPole": tasks.make("cartpole", scale=1.0)}


def config_of(args: study.Study, **settings: Any) -> Config:
    """The settings of the algorithm."""
    return Config(**args.some("num_agents", "num_streams", "num_steps"), **settings)


def algorithms(args: Train) -> dict[str, MetaAlgorithm]:
    """LPG on each family that the rule is trained on."""

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(1.0, 2 * args.meta_updates, alpha=0.1)
        return optax.chain(
            optax.scale_by_adam(), optax.scale_by_schedule(decay), optax.scale(-learning_rate)
        )

    hyper = Hyper(
        step_size=args.step_size,
        learning_rate=args.learning_rate,
        critic_step_size=0.5,  # critics are tables, with a window's time to learn of returns of 20
        policy_entropy_bonus=0.0,
        policy_target_cost=1e-4,
    )
    lives = dict(outer=args.outer, lifespan=args.lifespan, num_updates=args.window)
    config = config_of(args, **lives, tasks_per_chunk=8, rematerialize=False)
    optimizers = dict(optimizer=optimizer, agent_optimizer=OPTIMIZERS["adam"])
    made = partial(learned_objective.learned_objective, config=config, hyper=hyper, **optimizers)
    return {name: made(family) for name, family in families().items()}


def meta_train(args: Train) -> tuple[Meta, dict[str, list[float]]]:
    """The trained rule, and the reward per step of its agents in each family by meta-update."""
    every, learners = families(), algorithms(args)

    def update(states: dict[str, Any], key: jax.Array) -> tuple[dict[str, Any], dict]:
        """A meta-update in each family; the rule and its optimiser are handed on."""
        earned = {}
        meta, state = next(iter(states.values())).meta, next(iter(states.values())).optimizer
        for name, algorithm in learners.items():
            key, task_key, step_key = jax.random.split(key, 3)
            drawn = tasks.sample_tasks(task_key, every[name], args.num_agents, split="train")
            before = states[name]._replace(meta=meta, optimizer=state)
            after, metrics = algorithm.step(step_key, before, drawn)
            meta, state = after.meta, after.optimizer
            states = {**states, name: after}
            earned[name] = metrics["reward/step"]
        return {name: s._replace(meta=meta, optimizer=state) for name, s in states.items()}, earned

    init_key, run_key = jax.random.split(jax.random.key(args.seed))
    states = jax.jit(lambda key: {name: a.init(key) for name, a in learners.items()})(init_key)
    chunk = max(1, args.meta_updates // 20)
    call = jax.jit(lambda states, keys: jax.lax.scan(update, states, keys), donate_argnums=0)
    curve: dict[str, list[float]] = {name: [] for name in every}
    keys = jax.random.split(run_key, args.meta_updates)
    began = time.perf_counter()
    for start in range(0, args.meta_updates, chunk):
        states, earned = call(states, keys[start : start + chunk])
        for name, values in earned.items():
            curve[name] += np.asarray(values, float).tolist()
        now = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in earned.items())
        study.say(
            f"{min(start + chunk, args.meta_updates)} of {args.meta_updates} meta-updates in "
            f"{time.perf_counter() - began:.0f} s; reward per step: {now}"
        )
    return next(iter(states.values())).meta, curve


class Place(NamedTuple):
    """A family in which the rule is measured, with the agents that live there."""

    family: TaskFamily
    hidden_sizes: tuple[int, ...]
    step_sizes: Mapping[str, Sequence[float]]  # to choose from, by the agents' optimiser
    lifespan: int
    tune: int  # training tasks that settings are chosen on
    test: int  # held-out tasks


def places(args: Train) -> dict[str, Place]:
    """The places where the rule is measured, by their names."""
    known = LINEAR, args.lifespan, args.tune_tasks, args.eval_tasks
    new = NETWORK, args.transfer_lifespan, 5, args.transfer_agents
    every = {name: Place(family, (), *known) for name, family in families().items()}
    every |= {name: Place(family, (32,), *new) for name, family in unknown_families().items()}
    return {name: place for name, place in every.items() if name in args.compare_on}


def lifetime_returns(
    key: jax.Array, meta: Meta, task: Task, *, parts: RuleLearner, place: Place, args: Train
) -> jax.Array:
    """Mean return of an agent at birth and at equal distances of its life, ``[CHECKPOINTS + 1]``.

    Each look is at episodes of their own, which the agent does not learn from.
    """
    world = parts.learner, place.family.env
    setup = rollouts.Setup(*world, args.num_streams, args.num_steps)
    episodes = rollouts.Setup(*world, EPISODES, place.family.horizon)

    def look(key: jax.Array, agent: Any) -> jax.Array:
        data = rollouts.sample(key, meta, task, agent, setup=episodes)
        return jnp.mean(jax.vmap(first_episode_return)(data.reward, data.last))

    def live(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        adapt_key, look_key = jax.random.split(key)
        told = dict(setup=setup, num_updates=place.lifespan // CHECKPOINTS)
        agent, streams, _ = rollouts.adapt(adapt_key, meta, task, *carry, **told)
        return (agent, streams), look(look_key, agent)

    begin_key, look_key, live_key = jax.random.split(key, 3)
    newborn = rollouts.begin(begin_key, meta, task, setup=setup)
    _, returns = jax.lax.scan(live, newborn, jax.random.split(live_key, CHECKPOINTS))
    return jnp.concatenate([look(look_key, newborn[0])[None], returns])


def runner(
    args: Train, rule: UpdateRule, place: Place, optimizer: str
) -> Callable[[jax.Array, Meta, Task], jax.Array]:
    """Compiled ``(key, metas [G], tasks [M]) -> returns [G, M, CHECKPOINTS + 1]``; settings share keys."""
    told = dict(hidden_sizes=place.hidden_sizes, optimizer=OPTIMIZERS[optimizer])
    parts = update_rules.rule_learner(rule, place.family, **told)
    life = partial(lifetime_returns, parts=parts, place=place, args=args)

    def run(key: jax.Array, metas: Meta, drawn: Task) -> jax.Array:
        num_tasks = jax.tree.leaves(drawn)[0].shape[0]
        lives = jax.random.split(key, num_tasks), drawn

        def of(meta: Meta) -> jax.Array:
            size = min(20, num_tasks)
            return jax.lax.map(lambda x: life(x[0], meta, x[1]), lives, batch_size=size)

        return jax.lax.map(of, metas)

    return jax.jit(run)


Contestant = tuple[UpdateRule, dict[str, list[Meta]]]
"""A rule with the settings to choose from, by the agents' optimiser."""


def contestants(
    args: Train, meta: Meta, step_sizes: Mapping[str, Sequence[float]]
) -> dict[str, Contestant]:
    """The learned rule, as it is, with agents whose step size alone is to be chosen; and A2C."""
    learned = [study.with_hyper(meta, step_size=x) for x in step_sizes["adam"]]
    tuned = {
        name: [
            Meta({}, Hyper(**dict(zip(CHOSEN, x, strict=True))))
            for x in itertools.product(sizes, args.gae_lambdas, args.entropy_costs)
        ]
        for name, sizes in step_sizes.items()
    }
    return {
        "LPG": (learned_objective.rule_of(config_of(args)), {"adam": learned}),
        "A2C": (update_rules.a2c(), tuned),
    }


def chosen(args: Train, contestant: Contestant, place: Place) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns ``[test, CHECKPOINTS + 1]`` in held-out tasks with the settings that earn most at the end of
    a lifetime in training tasks, and those settings."""
    keys = jax.random.split(jax.random.key(args.seed + 10**6), 4)
    training_tasks = tasks.sample_tasks(keys[0], place.family, place.tune, split="train")
    rule, every = contestant
    best: tuple[float, Any, Any, str] = (-np.inf, None, None, "")
    for optimizer, metas in every.items():
        run = runner(args, rule, place, optimizer)
        scores = np.asarray(run(keys[2], _stacked(metas), training_tasks))[:, :, -1].mean(1)
        index = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
        if scores[index] > best[0]:
            best = float(scores[index]), run, metas[index], optimizer
    _, run, meta, optimizer = best
    returns = np.asarray(run(keys[3], _stacked([meta]), held_out(args, place)))[0]
    hyper = {name: float(getattr(meta.hyper, name)) for name in CHOSEN}
    return returns, {"optimizer": optimizer, **hyper}


def held_out(args: Train, place: Place) -> Task:
    """The tasks that all are measured in, ``[test]``."""
    key = jax.random.split(jax.random.key(args.seed + 10**6), 4)[1]
    return tasks.sample_tasks(key, place.family, place.test, split="test")


def _stacked(metas: Sequence[Meta]) -> Meta:
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y, float) for y in x]), *metas)


def compare(args: Train, meta: Meta) -> dict[str, Any]:
    """Each contestant's normalised returns over its lifetime, and settings, in each place."""
    results: dict[str, Any] = {}
    for name, place in places(args).items():
        keys = jax.random.split(jax.random.key(args.seed + 10**6 + 1))
        drawn, family = held_out(args, place), place.family
        references = study.references(keys, drawn, family, num_streams=200)
        random, best = (float(x.mean()) for x in references)
        results[name] = {"random": random, "best": best, "contestants": {}}
        for label, contestant in contestants(args, meta, place.step_sizes).items():
            (returns, settings), seconds = study.timed(partial(chosen, args, contestant, place))
            share = (returns - random) / (best - random)  # [tasks, checkpoints]
            results[name]["contestants"][label] = {
                "x": np.linspace(0, place.lifespan, CHECKPOINTS + 1).tolist(),
                "mean": share.mean(0).tolist(),
                "intervals": [evaluation.mean_interval(x[None]) for x in share.T],
                "return": float(returns[:, -1].mean()),
                "settings": settings,
                "seconds": seconds,
                "final": share[:, -1].tolist(),
            }
            study.say(f"{name}, {label}: {share[:, -1].mean():.3f} with {settings}")
    return results


COLUMNS = """
    setting = {setting} | rule = {rule} | normalised return at the end (95 %) = {last}
    | ahead of A2C, task by task = {ahead} | mean over the lifetime = {mean:.3f}
    | return = {return:.2f} | random = {random:.2f} | best = {best:.2f} | settings = {chosen}
"""


def comparison_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of the table."""
    rows = []
    for setting, entry in results.items():
        learned, tuned = (np.asarray(x["final"]) for x in entry["contestants"].values())
        # The keys of a task are the same for both, so much of what differs between tasks cancels.
        lead = (learned - tuned).mean(), *evaluation.mean_interval((learned - tuned)[None])
        for rule, cell in entry["contestants"].items():
            last = study.with_interval(cell["mean"][-1], *cell["intervals"][-1], digits=3)
            ahead = study.with_interval(*lead, digits=3) if rule == "LPG" else ""
            optimizer, *numbers = cell["settings"].items()
            told = [optimizer[1], *(f"{name} {x:.3g}" for name, x in numbers)]
            row = dict(setting=setting, rule=rule, last=last, ahead=ahead, chosen=", ".join(told))
            rows.append(entry | cell | row | {"mean": np.mean(cell["mean"][1:])})
    return study.table(COLUMNS, rows)


def train(args: Train) -> None:
    began = time.perf_counter()
    meta, curve = meta_train(args)
    trained = time.perf_counter() - began
    results = compare(args, meta)
    study.leave(
        args,
        comparison_table(results),
        results=results,
        training_curve=curve,
        training_seconds=trained,
        seconds=time.perf_counter() - began,
        rule=jax.tree.map(lambda x: np.asarray(x, float).tolist(), meta.params),
    )
    plotting.lifetimes(args.output / "lifetimes.png", results)


class Memory(study.Study):
    """Memory of a meta-gradient by the length of the lifetime."""

    output: study.Output = Path("runs/lifetime-memory")
    rules: Annotated[study.Names, study.known(("LPG", "OPEN", "DiscoRL"))] = ("LPG", "OPEN")
    """Rules; programs of DiscoRL, whose network is large, compile for minutes each."""
    lifespans: tuple[int, ...] = (10, 100, 1000)  # Updates of a lifetime.
    window: int = 5  # Updates that a truncated meta-gradient looks at.
    num_agents: int = 4
    num_streams: int = 8
    num_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for lifespan in self.lifespans:
            if lifespan % self.window:
                raise ValueError(f"lifespans={lifespan} must be a multiple of window={self.window}")


class Kind(NamedTuple):
    """A rule, and the estimator of its meta-gradient."""

    rule: str
    estimator: str  # As the table names it.
    outer: str
    whole: bool = False  # Whether a window is a whole lifetime.

    @property
    def name(self) -> str:
        """Both."""
        return f"{self.rule}, {self.estimator}"


TRUNCATED = "meta-gradient, truncated"
EVOLUTION = "evolution strategies, truncated"
PERSISTENT = "persistent evolution strategies"
KINDS = (
    Kind("LPG", TRUNCATED, "meta_gradient"),
    Kind("LPG", EVOLUTION, "es"),
    Kind("LPG", PERSISTENT, "pes"),
    Kind("OPEN", EVOLUTION, "es"),
    Kind("OPEN", PERSISTENT, "pes"),
    Kind("DiscoRL", TRUNCATED, "meta_gradient"),
    Kind("DiscoRL", EVOLUTION, "es"),
    Kind("LPG", "meta-gradient, whole lifetime", "meta_gradient", whole=True),
)


def lives_of(args: Memory, kind: Kind, family: TaskFamily, lifespan: int) -> MetaAlgorithm:
    """The algorithm that learns the rule. DiscoRL has the sizes of the published weights, and agents with a torso of 32 units."""
    told: dict[str, Any] = {}
    if kind.rule == "OPEN":
        optimizer = learned_optimizers.open_optimizer()
        told = dict(rule=update_rules.a2c(), agent_optimizer=optimizer)
    elif kind.rule == "DiscoRL":
        told = dict(rule=disco.disco(), agent_optimizer=disco.adam)
    config = config_of(
        args,
        outer=kind.outer,
        lifespan=lifespan,
        num_updates=lifespan if kind.whole else args.window,
        hidden_sizes=(32,) if kind.rule == "DiscoRL" else (),
        tasks_per_chunk=args.num_agents,
    )
    return learned_objective.learned_objective(family, config, **told)


def measure(args: Memory, kind: Kind, lifespan: int) -> dict[str, float]:
    """Bytes of a compiled program that takes all agents through a lifetime, and its seconds by an update of all agents."""
    window = lifespan if kind.whole else args.window
    family = families()["random MDPs"]
    algorithm = lives_of(args, kind, family, lifespan)
    state = jax.jit(algorithm.init)(jax.random.key(0))

    def live(key: jax.Array, state: Any, windows: jax.Array) -> Any:
        def body(i: jax.Array, state: Any) -> Any:
            task_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            drawn = tasks.sample_tasks(task_key, family, args.num_agents, split="train")
            return algorithm.step(step_key, state, drawn)[0]

        return jax.lax.fori_loop(0, windows, body, state)

    # One window is enough for the time, and the program is the same for a lifetime of them.
    told = jax.random.key(1), state, jnp.asarray(1)
    program = study.compiled(live, *told)
    study.timed(lambda: program.call(*told))
    _, seconds = study.timed(lambda: program.call(*told))
    arguments = program.call.memory_analysis().argument_size_in_bytes
    return {
        "temporary_bytes": program.memory,
        "argument_bytes": arguments,
        "seconds": seconds / window,
    }


def memory(args: Memory) -> None:
    results: dict[str, dict[int, dict[str, float]]] = {}
    rows = []
    for kind in KINDS:
        if kind.rule not in args.rules:
            continue
        cells = results[kind.name] = {}
        for lifespan in args.lifespans:
            cells[lifespan] = measure(args, kind, lifespan)
            study.say(f"{kind.name}, {lifespan} updates: {cells[lifespan]}")
        taken = {x: cell["temporary_bytes"] for x, cell in cells.items()}
        shortest, *_, longest = [*taken.values()] * 2
        rows.append(
            {
                "rule": kind.rule,
                "meta-gradient": kind.estimator,
                **{f"{x} updates, MB": f"{memory / 1e6:.1f}" for x, memory in taken.items()},
                "longest / shortest": f"{longest / shortest:.2f}",
                "an update, ms": f"{1e3 * cells[args.lifespans[-1]]['seconds']:.1f}",
            }
        )
    study.leave(args, rows, results=results)
    plotting.lifetime_memory(args.output / "memory.png", results)


if __name__ == "__main__":
    study.main({Train: train, Memory: memory}, __doc__)
