"""Learned rules: do they beat tuned ones where they were learned and elsewhere, and do published ones do as reported?

    python benchmarks/learned_rules.py compare --output runs/learned-rules
    python benchmarks/learned_rules.py lifespans --output runs/time-aware-lpg
    python benchmarks/learned_rules.py check --weights disco_103.npz
    python benchmarks/learned_rules.py catch --weights disco_103.npz --output runs/disco-catch

`compare` meta-trains LPG, TA-LPG and OPEN on random MDPs. Then they meet A2C, DPO and, with weights, DiscoRL. The rules are
measured on held-out tasks and on tasks out of distribution, of random MDPs and of other families. OPEN's agents have A2C's loss
and a learned optimiser; all other agents have Adam. Training tasks choose the step size of every rule, and the weight of the
entropy of A2C and DPO. `lifespans` trains LPG and TA-LPG on lives of several lengths, and measures both in each.

`check` compares the outputs of DiscoRL's meta-network on a fixed batch with recorded ones. `catch` follows the rule in Catch on
8 × 8, with the settings of the authors' notebook: 2 environments, 28 steps between updates, each on 64 of the last 1024 pieces,
whose loss leaves out the first step of each episode.
An agent solves Catch when its mean return reaches 0.99: it catches 99.5 % of the balls. The weights belong to the authors' code and have their own
licence. They are no part of this project.

In `catch` A2C and LPG take as many steps in as many environments between as many updates, and learn from these steps alone. Their agents
have layers of the same sizes. Other seeds choose their settings. LPG is one rule that `catch` learns on random MDPs, as `compare` does.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import study

from jaxmeta import evaluation, plotting, rollouts, tasks
from jaxmeta.algorithms import learned_objective
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.learners import disco, learned_optimizers, update_rules
from jaxmeta.learners.disco import Hyper, Replay
from jaxmeta.learners.update_rules import Meta
from jaxmeta.meta_updates import windows
from jaxmeta.networks import disco as networks
from jaxmeta.networks.disco import Experience
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import Learner, Task

Positive = Annotated[float, study.within(1e-6, 1e3)]
Sizes = Annotated[tuple[int, ...], study.at_least(1)]


CATCHERS = ("Disco", "A2C", "DPO", "LPG")


class Catch(study.Study):
    """DiscoRL and other rules in Catch on 8 × 8. The folder keeps each part when it is measured."""

    resume: bool = False  # Keep the parts that are in the folder and measure the others.
    rules: Annotated[study.Names, study.known(CATCHERS)] = ("Disco", "A2C", "LPG")
    weights: Path | None = None  # Published weights; None draws random ones, as a control.
    updates: int = 1000  # Updates of an agent.
    every: int = 100  # Updates between two looks at an agent.
    num_seeds: int = 5  # Agents of a rule, one after the other.
    num_streams: int = 2  # Environments of an agent.
    num_steps: int = 28  # Steps of each between two updates.
    num_sampled: int = 64  # Pieces in an update of DiscoRL.
    capacity: int = 1024  # Pieces that its agents keep.
    first_steps: bool = False
    """Whether DiscoRL's agents learn from the first step of an episode. The notebook's do not."""
    step_size: Positive = 0.01  # Of the Adam of DiscoRL's agents.
    hidden_sizes: Sizes = (512, 512)  # Layers of the agents' networks.
    model_size: int = 128  # Units of DiscoRL's model of actions.
    step_sizes: Annotated[study.Numbers, study.within(1e-6, 1e3)] = (3e-4, 1e-3, 3e-3)
    """Step sizes of Adam that all other rules may choose from."""
    entropy_costs: Annotated[study.Numbers, study.within(0, 1e6)] = (0.0, 0.05, 0.2)
    """Weights of the entropy that A2C and DPO may choose from."""
    lpg_meta_updates: int = 200  # Of LPG, on random MDPs.
    episodes: int = 256  # Episodes of a look.
    seed: int = 0  # Of the first agent.


class Check(study.Study):
    """DiscoRL's meta-network on a fixed batch."""

    weights: Path | None = None  # Published weights, which are needed.


DISCO_ALONE = ("weights", "num_sampled", "capacity", "first_steps", "step_size", "model_size")
OTHERS_ALONE = ("step_sizes", "entropy_costs", "lpg_meta_updates")
"""The settings of `Catch` that DiscoRL alone reads, and those that all other rules alone read."""

CHOICE_SEEDS = range(study.EVALUATION_SEED, study.EVALUATION_SEED + 5)
"""The agents that choose a rule's settings, by the share that they catch at last. None of them is measured."""


def live(
    args: Catch, name: str, meta: Meta, programs: dict[str, Callable], seed: int
) -> list[float]:
    """The share of balls that an agent catches at each look."""
    key = jax.random.key(seed)
    begin_key, live_key, look_key = jax.random.split(key, 3)
    # No two arrays may share memory that is overwritten.
    carry, caught = jax.tree.map(jnp.copy, programs["begin"](begin_key, meta)), []
    for done in range(0, args.updates, args.every):
        keys = jax.random.split(jax.random.fold_in(live_key, done), args.every)
        began = time.perf_counter()
        carry = programs["live"](keys, meta, carry)
        share = programs["look"](jax.random.fold_in(look_key, done), meta, carry[0])
        caught.append(float(share))
        study.say(
            f"{name}, seed {seed}, update {done + args.every}: {caught[-1]:.1%} caught, "
            f"{(time.perf_counter() - began) / args.every:.3f} s an update"
        )
    return caught


def programs_of(args: Catch, family: TaskFamily, learner: Learner) -> dict[str, Callable]:
    """The compiled programs of a life: its beginning, `Catch.every` updates, and a look."""
    setup = rollouts.Setup(learner, family.env, args.num_streams, args.num_steps)
    episodes = rollouts.Setup(learner, family.env, args.episodes, family.horizon)
    task = family.train(jax.random.key(0))

    def begin(key: jax.Array, meta: Meta) -> Any:
        return rollouts.begin(key, meta, task, setup=setup)

    def update(meta: Meta, carry: Any, key: jax.Array) -> tuple[Any, None]:
        agent, streams = carry
        act_key, update_key = jax.random.split(key)
        streams, data = rollouts.collect(act_key, meta, task, agent, streams, setup=setup)
        return (learner.update(update_key, meta, agent, data), streams), None

    def look(key: jax.Array, meta: Meta, agent: Any) -> jax.Array:
        data = rollouts.sample(key, meta, task, agent, setup=episodes)
        return jnp.mean(jax.vmap(first_episode_return)(data.reward, data.last) > 0)

    def many(keys: jax.Array, meta: Meta, carry: Any) -> Any:
        return jax.lax.scan(partial(update, meta), carry, keys)[0]

    return {
        "begin": jax.jit(begin),
        "live": jax.jit(many, donate_argnums=2),
        "look": jax.jit(look),
    }


def catcher(args: Catch, name: str, family: TaskFamily) -> "Contestant":
    """A rule in Catch, with the settings of its agents to choose from."""
    if name == "Disco":
        rule = disco.disco(args.weights)
        parts = disco.disco_learner(
            rule,
            family,
            hidden_sizes=args.hidden_sizes,
            model_size=args.model_size,
            replay=Replay(args.num_steps, args.capacity, args.num_sampled),
            first_steps=args.first_steps,
        )
        params = jax.jit(rule.init)(jax.random.key(0))
        return Contestant(parts.learner, [Meta(params, Hyper(step_size=args.step_size))])
    learner = agents_of(name, Place("Catch", family, args.hidden_sizes, args.updates)).learner
    costs = (0.0,) if name == "LPG" else args.entropy_costs
    params = rule_of_catch(args) if name == "LPG" else {}
    settings = itertools.product(args.step_sizes, costs)
    metas = [
        Meta(params, learned_objective.Hyper(step_size=x, entropy_cost=y)) for x, y in settings
    ]
    return Contestant(learner, metas)


def rule_of_catch(args: Catch) -> Any:
    """The parameters of LPG, which is learned on random MDPs unless it is in the folder."""

    def learned() -> dict[str, Any]:
        lives = Lives(lpg_meta_updates=args.lpg_meta_updates)
        (params, earned), seconds = study.timed(lambda: meta_trained(lives, "LPG", (50,), 0))
        study.say(f"LPG is learned in {seconds:.0f} s: {earned:.3f} a step")
        return {"params": as_lists(params), "reward": earned, "seconds": seconds}

    part = study.kept(args.output / "rules" / "LPG-0.json", args.some("lpg_meta_updates"), learned)
    shapes = jax.eval_shape(update_rules.lpg().init, jax.random.key(0))
    return jax.tree.map(lambda like, x: np.asarray(x, like.dtype), shapes, part["params"])


def caught_by(args: Catch, name: str, family: TaskFamily) -> tuple[dict[str, float], dict]:
    """The settings that a rule's agents choose, and the shares of balls that they catch, by their seeds."""
    learner, metas = catcher(args, name, family)
    programs = programs_of(args, family, learner)
    alone = OTHERS_ALONE if name == "Disco" else DISCO_ALONE
    settings = args.told("output", "resume", "rules", "seed", "num_seeds", *alone)

    def lives(meta: Meta, seeds: Sequence[int]) -> np.ndarray:
        return np.array([live(args, name, meta, programs, seed) for seed in seeds])

    best = 0
    if len(metas) > 1:
        path = args.output / "choices" / f"{name}.json"
        tried = lambda: {"caught": [lives(x, CHOICE_SEEDS).tolist() for x in metas]}  # noqa: E731
        found = study.kept(path, settings, tried)["caught"]
        best = int(np.argmax(np.mean(found, axis=1)[:, -1]))
    caught = {}
    for seed in range(args.seed, args.seed + args.num_seeds):
        path = args.output / "seeds" / f"{name}-{seed}.json"
        one = lambda seed=seed: {"caught": lives(metas[best], [seed])[0].tolist()}  # noqa: E731
        caught[str(seed)] = study.kept(path, settings, one)["caught"]
    return chosen_of(metas[best].hyper), caught


def catch(args: Catch) -> None:
    if args.updates % args.every:
        raise ValueError(f"updates={args.updates} must be a multiple of every={args.every}")
    began, family = time.perf_counter(), tasks.make("catch", rows=8, columns=8)
    looks, found = range(args.every, args.updates + 1, args.every), {}
    rows, lines = [], {}
    for name in args.rules:
        chosen, caught = caught_by(args, name, family)
        found[name] = {"chosen": chosen, "caught": caught}
        every = np.array(list(caught.values()))
        told = ", ".join(f"{x} {y:g}" for x, y in chosen.items())
        for seed, shares in (*caught.items(), ("mean", every.mean(axis=0))):
            cells = {str(x): f"{y:.1%}" for x, y in zip(looks, shares, strict=True)}
            rows.append({"rule": name, "seed": seed} | cells | {"settings": told})
        ends = np.stack([every.min(axis=0), every.max(axis=0)], axis=-1)
        lines[name] = {"x": [*looks], "mean": every.mean(axis=0), "intervals": ends}
    study.leave(args, rows, results=found, seconds=time.perf_counter() - began)
    steps = args.num_streams * args.num_steps
    plotting.lifetimes(
        args.output / "catch.png",
        {"Catch, 8 × 8": {"contestants": lines}},
        x_label=f"updates, {steps} environment steps each",
        y_label="share of balls caught",
    )


def fixed_batch() -> Experience:
    """Two pieces of three steps with three actions. The array number i holds ``cos(i), cos(i + 1), ...``, or its softmax."""
    b, t, a, m = 2, 3, 3, 600

    def wave(i: int, *shape: int) -> jax.Array:
        return jnp.asarray(np.cos(i + np.arange(np.prod(shape))).reshape(shape), float)

    return Experience(
        policy=jax.nn.softmax(wave(1, b, t + 1, a)),
        behaviour=jax.nn.softmax(wave(2, b, t, a)),
        slow_policy=jax.nn.softmax(wave(3, b, t + 1, a)),
        y=wave(4, b, t + 1, m),
        slow_y=wave(5, b, t + 1, m),
        z=wave(6, b, t + 1, a, m),
        slow_z=wave(7, b, t + 1, a, m),
        action=jnp.arange(b * t).reshape(b, t) % a,
        reward=wave(8, b, t),
        last=jnp.array([[False, False, False], [False, True, False]]),
        value=wave(9, b, t + 1),
        advantage=wave(10, b, t),
        scaled_advantage=wave(11, b, t),
        slow_q=wave(12, b, t, a),
        action_advantage=wave(13, b, t, a),
        scaled_action_advantage=wave(14, b, t, a),
    )


RECORDED = {
    "policy of the first piece's first step": (2.489103, 0.917305, 1.164333),
    "policy of the second piece's last step": (0.804678, 1.217381, 1.952822),
    "y of the first step, the first three": (0.094126, 0.081826, -0.009260),
    "z of the first step, the first three": (0.088376, 0.124609, 0.054272),
    "memory, the first three": (-0.004617, -0.001450, 0.022750),
}
"""Outputs with the published weights, Disco103, at the second of two updates on the fixed batch: by NumPy, in float64."""


def outputs_on_fixed_batch(params: Any) -> dict[str, np.ndarray]:
    """Some outputs at the second of two updates on the `fixed_batch`, by their names in `RECORDED`."""
    sizes, batch = networks.Sizes(), fixed_batch()
    call = jax.jit(networks.apply)
    _, memory = call(params, networks.memory_at_birth(sizes), batch, jnp.ones(2, bool))
    targets, memory = call(params, memory, batch, jnp.ones(2, bool))
    return {
        "policy of the first piece's first step": np.asarray(targets.policy[0, 0]),
        "policy of the second piece's last step": np.asarray(targets.policy[1, 2]),
        "y of the first step, the first three": np.asarray(targets.y[0, 0, :3]),
        "z of the first step, the first three": np.asarray(targets.z[0, 0, :3]),
        "memory, the first three": np.asarray(memory[0][:3]),
    }


def check(args: Check) -> None:
    if args.weights is None:
        raise ValueError("weights=None must be the path of the published weights")
    params = disco.disco(args.weights).init(jax.random.key(0))
    found = outputs_on_fixed_batch(params)
    rows = [
        {
            "output": name,
            "here": " ".join(f"{x:.5f}" for x in values),
            "recorded": " ".join(f"{x:.5f}" for x in RECORDED[name]),
            "largest difference": f"{np.max(np.abs(values - np.array(RECORDED[name]))):.1e}",
        }
        for name, values in found.items()
    ]
    study.leave(args, rows, outputs={name: x.tolist() for name, x in found.items()})


FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "random MDPs": lambda: tasks.make(
        "tabular", horizon=20, num_states=8, num_actions=4, reward_noise=0.5
    ),
    "grid worlds": lambda: tasks.make("gridworld", size=4, horizon=20, num_objects=4),
    "Catch": lambda: tasks.make("catch"),
    "CartPole": lambda: tasks.make("cartpole", scale=1.0),
    "Breakout": lambda: tasks.make("breakout", horizon=100),
}
"""The families; rules are learned on the first."""

TABLES = ("random MDPs", "grid worlds")
"""Families whose observations are one-hot, so that linear agents are tables."""

RULES = ("A2C", "DPO", "LPG", "TA-LPG", "OPEN", "Disco")
LEARNED = ("LPG", "TA-LPG", "OPEN")
ADAM = partial(optax.adam, eps_root=1e-8)
STEP_SIZES = {"tables": (0.05, 0.1, 0.2, 0.4, 0.8), "networks": (1e-3, 3e-3, 1e-2, 3e-2)}
UNITS = {"tables": (3.0, 10.0, 30.0, 100.0), "networks": (1.0, 3.0, 10.0, 30.0)}
DISCO_STEP_SIZES = (1e-3, 3e-3, 1e-2, 3e-2)
Scales = Annotated[tuple[int, ...], study.at_least(1)]


class Lives(study.Study):
    """Lives of agents, as all rules have them."""

    num_agents: int = 16  # Lives in a meta-update.
    num_streams: int = 4  # Streams of an agent.
    num_steps: int = 20  # Steps of each between two updates.
    window: int = 10  # Updates that a meta-gradient of LPG looks at.
    lpg_meta_updates: int = 300
    """Of LPG and of TA-LPG, by meta-gradients, for each of the lifespans."""
    learning_rate: Positive = 4e-3
    """Of LPG and of TA-LPG, at first; it falls to a tenth along a cosine."""
    looks: int = 5  # Times that an agent is looked at in its life, at equal distances.
    episodes: int = 10  # Episodes of a look.
    tasks: Annotated[int, study.at_least(2)] = 40
    """Training tasks that settings are chosen on, held-out tasks, and tasks out of distribution."""
    num_seeds: int = 1  # Rules that are learned, and agents in each task.
    seed: int = 0  # Of the first.

    def divide(self, name: str, value: int, *others: str) -> None:
        """Raises ValueError unless a number of updates is a multiple of the others."""
        for other in others:
            if value % getattr(self, other):
                raise ValueError(
                    f"{name}={value} must be a multiple of {other}={getattr(self, other)}"
                )


class Compare(Lives):
    """Rules in families. The folder keeps each rule when it is learned, and each cell when it is measured."""

    resume: bool = False  # Keep the rules and cells that are in the folder and measure the others.

    rules: Annotated[study.Names, study.known(RULES)] = RULES[:-1]  # Disco needs weights.
    families: Annotated[study.Names, study.known(FAMILIES)] = (*FAMILIES,)[:-1]
    """Where they are measured; the first is the one that they are learned on."""
    weights: Path | None = None  # Published weights of Disco.
    lifespan: int = 50  # Updates of a life in random MDPs and grid worlds, and in meta-training.
    long_lifespan: int = 200  # The same in all other families.
    open_meta_updates: int = 300  # Of OPEN, by evolution.
    open_learning_rate: Positive = 0.03
    open_step_size: Positive = 100.0
    """OPEN's step size in meta-training. The paper's is 1; linear agents take larger steps."""
    noise_std: Positive = 0.03  # Of the perturbations of OPEN.
    open_entropy_cost: Annotated[float, study.within(0, 1e6)] = 0.05
    """Weight of the entropy in the loss of OPEN's agents, in meta-training and after it."""
    entropy_costs: Annotated[study.Numbers, study.within(0, 1e6)] = (0.0, 0.05)
    """Weights of the entropy that A2C and DPO may choose from."""
    hidden_sizes: Sizes = (32,)  # Layers of agents outside of random MDPs and grid worlds.

    def __post_init__(self) -> None:
        super().__post_init__()
        self.divide("lifespan", self.lifespan, "looks", "window")
        self.divide("long_lifespan", self.long_lifespan, "looks")
        if "Disco" in self.rules and self.weights is None:
            raise ValueError(
                "weights=None must be the path of the published weights, or leave Disco out"
            )


class Lifespans(Lives):
    """LPG and TA-LPG in lives of several lengths."""

    lifespans: Scales = (10, 50, 250)  # Updates of a life, in turns in meta-training.

    def __post_init__(self) -> None:
        super().__post_init__()
        for lifespan in self.lifespans:
            self.divide("lifespans", lifespan, "looks", "window")


class Place(NamedTuple):
    """A family, and the life of agents there."""

    name: str
    family: TaskFamily
    hidden_sizes: tuple[int, ...]
    lifespan: int

    @property
    def kind(self) -> str:
        """What its agents are."""
        return "tables" if self.name in TABLES else "networks"


class Contestant(NamedTuple):
    """A rule with the settings to choose from."""

    learner: Learner
    metas: list[Meta]


def rule_named(name: str) -> update_rules.UpdateRule:
    """The loss of a contestant's agents."""
    made = {
        "A2C": update_rules.a2c,
        "OPEN": update_rules.a2c,
        "DPO": update_rules.dpo,
        "LPG": update_rules.lpg,
        "TA-LPG": partial(update_rules.lpg, time_aware=True),
    }
    return made[name]()


def agents(name: str) -> dict[str, Any]:
    """How agents of a rule learn: epochs and optimiser."""
    optimizer: Any = learned_optimizers.open_optimizer() if name == "OPEN" else ADAM
    return {"num_epochs": 4 if name == "DPO" else 1, "optimizer": optimizer}


def agents_of(name: str, place: Place) -> update_rules.RuleLearner:
    """The agents of a rule in a place."""
    how, rule = agents(name), rule_named(name)
    lifespan = place.lifespan if update_rules.reads_time(rule, how["optimizer"]) else None
    told = dict(hidden_sizes=place.hidden_sizes, lifespan=lifespan, rematerialize=False)
    return update_rules.rule_learner(rule, place.family, **told, **how)


def meta_trained(args: Lives, name: str, lifespans: Sequence[int], seed: int) -> tuple[Any, float]:
    """The parameters of a rule that is learned on random MDPs in lives of these lengths in turns, and the reward of a step of its last
    agents."""
    family, by_evolution = FAMILIES["random MDPs"](), name == "OPEN"
    config = dict(num_agents=args.num_agents, **args.some("num_streams", "num_steps"))
    told: dict[str, Any] = dict(rule=rule_named(name))
    if by_evolution:
        hyper = learned_objective.Hyper(
            step_size=args.open_step_size,
            learning_rate=args.open_learning_rate,
            noise_std=args.noise_std,
            entropy_cost=args.open_entropy_cost,
            policy_entropy_bonus=0.0,
        )
        estimator = partial(windows.persistent_evolution_strategy, ranked=True)
        told |= dict(estimator=estimator, agent_optimizer=agents(name)["optimizer"])
        count, scale = args.open_meta_updates, partial(optax.scale_by_adam, b1=0.99)
    else:
        hyper = learned_objective.Hyper(
            step_size=0.2,
            learning_rate=args.learning_rate,
            critic_step_size=0.5,
            policy_entropy_bonus=0.0,
            policy_target_cost=1e-4,
        )
        told |= dict(agent_optimizer=ADAM)
        count, scale = args.lpg_meta_updates * len(lifespans), optax.scale_by_adam
    decay = optax.cosine_decay_schedule(1.0, count, alpha=0.1)

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        return optax.chain(scale(), optax.scale_by_schedule(decay), optax.scale(-learning_rate))

    every = [
        learned_objective.learned_objective(
            family,
            learned_objective.Config(
                lifespan=lifespan,
                num_updates=lifespan if by_evolution else args.window,
                tasks_per_chunk=8,
                rematerialize=False,
                **config,
            ),
            hyper,
            optimizer=optimizer,
            **told,
        )
        for lifespan in lifespans
    ]
    return in_turns(every, family, args, count // len(lifespans), seed)


def in_turns(
    every: Sequence[Any], family: TaskFamily, args: Lives, rounds: int, seed: int
) -> tuple[Any, float]:
    """The parameters after ``rounds`` of a meta-update of each algorithm, and the reward of a step in the last tenth."""

    def update(states: list, key: jax.Array) -> tuple[list, jax.Array]:
        earned = []
        for i, (algorithm, at) in enumerate(
            zip(every, jax.random.split(key, len(every)), strict=True)
        ):
            task_key, step_key = jax.random.split(at)
            drawn = tasks.sample_tasks(task_key, family, args.num_agents, split="train")
            states[i], metrics = algorithm.step(step_key, states[i], drawn)
            meta, state = states[i].meta, states[i].optimizer
            states = [s._replace(meta=meta, optimizer=state) for s in states]
            earned.append(metrics["reward/step"])
        return states, jnp.stack(earned)

    init_key, run_key = jax.random.split(jax.random.key(seed))
    states = jax.jit(lambda key: [a.init(key) for a in every])(init_key)
    call = jax.jit(lambda states, keys: jax.lax.scan(update, states, keys), donate_argnums=0)
    states, earned = call(states, jax.random.split(run_key, rounds))
    last = np.asarray(earned)[-max(1, rounds // 10) :]
    return jax.device_get(states[0].meta.params), float(np.mean(last))


def contestant(
    name: str, place: Place, params: Any, weights: Path | None, costs: Sequence[float] = (0.0,)
) -> Contestant:
    """A rule in a place, with the settings of its agents to choose from."""
    if name == "Disco":
        rule = disco.disco(weights)
        # The last layer of its agents' torso is linear, so they have as many ReLU layers as others.
        hidden_sizes = (*place.hidden_sizes, 32)
        parts = disco.disco_learner(rule, place.family, hidden_sizes=hidden_sizes, model_size=32)
        weights_of = jax.jit(rule.init)(jax.random.key(0))
        metas = [Meta(weights_of, Hyper(step_size=x)) for x in DISCO_STEP_SIZES]
        return Contestant(parts.learner, metas)
    parts = agents_of(name, place)
    sizes = (UNITS if name == "OPEN" else STEP_SIZES)[place.kind]
    metas = [
        Meta(params, learned_objective.Hyper(step_size=x, entropy_cost=y))
        for x, y in itertools.product(sizes, costs)
    ]
    return Contestant(parts.learner, metas)


def runner(args: Lives, place: Place, learner: Learner) -> Callable[..., np.ndarray]:
    """``(seed, meta, tasks [M]) -> returns [M, looks + 1]``, at birth and at equal distances of a life."""
    world = learner, place.family.env
    setup = rollouts.Setup(*world, args.num_streams, args.num_steps)
    episodes = rollouts.Setup(*world, args.episodes, place.family.horizon)

    def life(key: jax.Array, meta: Meta, task: Task) -> jax.Array:
        def look(key: jax.Array, agent: Any) -> jax.Array:
            data = rollouts.sample(key, meta, task, agent, setup=episodes)
            return jnp.mean(jax.vmap(first_episode_return)(data.reward, data.last))

        def update(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            act_key, update_key = jax.random.split(key)
            agent, streams = carry
            streams, data = rollouts.collect(act_key, meta, task, agent, streams, setup=setup)
            return (learner.update(update_key, meta, agent, data), streams), None

        def live(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            adapt_key, look_key = jax.random.split(key)
            keys = jax.random.split(adapt_key, place.lifespan // args.looks)
            carry, _ = jax.lax.scan(update, carry, keys)
            return carry, look(look_key, carry[0])

        begin_key, look_key, live_key = jax.random.split(key, 3)
        newborn = rollouts.begin(begin_key, meta, task, setup=setup)
        _, returns = jax.lax.scan(live, newborn, jax.random.split(live_key, args.looks))
        return jnp.concatenate([look(look_key, newborn[0])[None], returns])

    @jax.jit
    def run(key: jax.Array, meta: Meta, drawn: Task) -> jax.Array:
        lives = jax.random.split(key, args.tasks), drawn
        one = lambda x: life(x[0], meta, x[1])  # noqa: E731
        return jax.lax.map(one, lives, batch_size=min(20, args.tasks))

    def returns(seed: int, meta: Meta, drawn: Task) -> np.ndarray:
        meta = jax.tree.map(lambda x: jnp.asarray(x, float), meta)
        return np.asarray(run(jax.random.key(study.EVALUATION_SEED + seed), meta, drawn))

    return returns


def drawn_tasks(args: Lives, family: TaskFamily) -> dict[str, Task]:
    """Tasks ``[M]`` of each split. All rules are measured on the same ones. The ``train`` tasks choose settings."""
    return {
        split: jax.jit(
            partial(tasks.sample_tasks, family=family, num_tasks=args.tasks, split=split)
        )(jax.random.key(study.EVALUATION_SEED))
        for split in ("train", *study.SPLITS)
    }


def seconds_of_an_update(
    args: Lives, place: Place, learner: Learner, meta: Meta, task: Task
) -> float:
    """The median seconds of an agent's update, without acting."""
    setup = rollouts.Setup(learner, place.family.env, args.num_streams, args.num_steps)
    meta = jax.tree.map(lambda x: jnp.asarray(x, float), meta)

    @jax.jit
    def begin(key: jax.Array) -> tuple:
        begin_key, act_key = jax.random.split(key)
        agent, streams = rollouts.begin(begin_key, meta, task, setup=setup)
        return agent, rollouts.collect(act_key, meta, task, agent, streams, setup=setup)[1]

    agent, data = begin(jax.random.key(0))
    update = jax.jit(learner.update)
    call = partial(update, jax.random.key(1), meta, agent, data)
    study.timed(call)
    return float(np.median([study.timed(call)[1] for _ in range(20)]))


def measured(args: Lives, place: Place, name: str, each: Sequence[Contestant]) -> dict[str, Any]:
    """Returns ``[seeds, M, looks + 1]`` of a rule by split, the settings of the first seed, and the cost of an update.

    ``each`` has the contestant of every seed, whose learners are alike."""
    splits, run = drawn_tasks(args, place.family), runner(args, place, each[0].learner)
    found: dict[str, list] = {split: [] for split in study.SPLITS}
    chosen = []
    for seed, one in enumerate(each, args.seed):
        scores = [run(seed, meta, splits["train"])[:, -1].mean() for meta in one.metas]
        best = one.metas[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]
        chosen.append(best)
        for split in study.SPLITS:
            found[split].append(run(seed + 10**4, best, splits[split]))
    one_task = jax.tree.map(lambda x: x[0], splits["test"])
    cost = seconds_of_an_update(args, place, each[0].learner, chosen[0], one_task)
    settings = chosen_of(chosen[0].hyper)
    returns = {split: np.stack(x) for split, x in found.items()}
    study.say(f"{place.name}, {name}: {returns['test'][..., -1].mean():.3f} with {settings}")
    return {"returns": returns, "chosen": settings, "microseconds": 1e6 * cost}


def chosen_of(hyper: Any) -> dict[str, float]:
    """The settings of a rule's agents that may be chosen."""
    names = [x for x in ("step_size", "entropy_cost") if hasattr(hyper, x)]
    return {x: float(getattr(hyper, x)) for x in names}


def references_of(args: Lives, place: Place) -> dict[str, tuple[float, float]]:
    """Mean returns of random actions and of the reference agent, by split."""
    found = {}
    for split, drawn in drawn_tasks(args, place.family).items():
        keys = jax.random.split(jax.random.key(study.EVALUATION_SEED + 1))
        low, high = study.references(keys, drawn, place.family, num_streams=50)
        found[split] = float(low.mean()), float(high.mean())
    return found


COLUMNS = """
    family = {family} | rule = {rule} | held-out, at the end (95 %) = {test}
    | ahead of A2C = {ahead} | over the lifetime = {over:.3f}
    | out of distribution, at the end (95 %) = {out_of_distribution} | settings = {chosen}
    | an update, µs = {microseconds:.0f}
"""


def rows_of(results: dict[str, dict[str, Any]], first: str) -> list[dict[str, str]]:
    """The rows of the table: normalised returns, 0 for random actions and 1 for the reference agent."""
    rows = []
    for family, entry in results.items():
        ends = {}
        for rule, cell in entry["rules"].items():
            row = dict(family=family, rule=rule, microseconds=cell["microseconds"])
            for split in study.SPLITS:
                low, high = entry["references"][split]
                share = (np.asarray(cell["returns"][split]) - low) / (high - low)
                end = share[..., -1]
                interval = evaluation.mean_interval(end)
                row[split] = study.with_interval(end.mean(), *interval, digits=3)
                if split == "test":
                    ends[rule], row["over"] = end, share[..., 1:].mean()
            # Agents in the same task share their keys, so much of what differs between tasks cancels.
            ahead = ends[rule] - ends.get(first, ends[rule])
            row["ahead"] = ""
            if rule != first and first in ends:
                interval = evaluation.mean_interval(ahead)
                row["ahead"] = study.with_interval(ahead.mean(), *interval, digits=3)
            row["chosen"] = ", ".join(f"{k} {v:.3g}" for k, v in cell["chosen"].items())
            rows.append(row)
    return study.table(COLUMNS, rows)


def as_lists(tree: Any) -> Any:
    """A tree with lists for its arrays."""
    return jax.tree.map(lambda x: x.tolist() if isinstance(x, np.ndarray) else x, tree)


def kept_rules(args: Compare) -> dict[str, list[Any]]:
    """The parameters of the rules that are learned, a list of seeds each; a rule that is in the folder is not learned again."""
    trained: dict[str, list[Any]] = {}

    def learned(name: str, seed: int) -> dict[str, Any]:
        (params, earned), seconds = study.timed(
            lambda: meta_trained(args, name, (args.lifespan,), seed)
        )
        study.say(f"{name} is learned in {seconds:.0f} s: {earned:.3f} a step")
        return {"params": as_lists(params), "reward": earned, "seconds": seconds}

    for name in args.rules:
        if name not in LEARNED:
            continue
        place = Place("random MDPs", FAMILIES["random MDPs"](), (), args.lifespan)
        shapes = jax.eval_shape(agents_of(name, place).first_params, jax.random.key(0))
        trained[name] = []
        for seed in range(args.seed, args.seed + args.num_seeds):
            path = args.output / "rules" / f"{name}-{seed}.json"
            part = study.kept(path, settings_of(args), partial(learned, name, seed))
            params = jax.tree.map(lambda like, x: np.asarray(x, like.dtype), shapes, part["params"])
            trained[name].append(params)
    return trained


def settings_of(args: Compare, name: str = "") -> dict[str, Any]:
    """The settings that the rule's parts of the study depend on; of Disco also the contents of its weights."""
    settings = args.told("output", "resume", "rules", "families", "weights")
    if name == "Disco" and args.weights is not None:
        settings["weights"] = hashlib.sha256(args.weights.read_bytes()).hexdigest()
    return settings


def compare(args: Compare) -> None:
    began, trained = time.perf_counter(), kept_rules(args)
    results: dict[str, dict[str, Any]] = {}
    for family in args.families:
        tables = family in TABLES
        sizes = () if tables else args.hidden_sizes
        lifespan = args.lifespan if tables else args.long_lifespan
        place = Place(family, FAMILIES[family](), sizes, lifespan)
        costs = dict.fromkeys(("A2C", "DPO"), args.entropy_costs)
        costs |= {"OPEN": (args.open_entropy_cost,)}

        def measure(name: str, place: Place = place, costs: dict = costs) -> dict[str, Any]:
            each = [
                contestant(name, place, params, args.weights, costs.get(name, (0.0,)))
                for params in trained.get(name, [{}] * args.num_seeds)
            ]
            return as_lists(measured(args, place, name, each))

        cells = {
            name: study.kept(
                args.output / "cells" / f"{family}-{name}.json",
                settings_of(args, name),
                partial(measure, name),
            )
            for name in args.rules
        }
        results[family] = {"references": references_of(args, place), "rules": cells}
    study.leave(args, rows_of(results, "A2C"), results=results, seconds=time.perf_counter() - began)


def lifespans(args: Lifespans) -> None:
    began = time.perf_counter()
    seeds = range(args.seed, args.seed + args.num_seeds)
    names = ("LPG", "TA-LPG")
    trained = {
        name: [meta_trained(args, name, args.lifespans, seed)[0] for seed in seeds]
        for name in names
    }
    results: dict[str, dict[str, Any]] = {}
    for lifespan in args.lifespans:
        place = Place("random MDPs", FAMILIES["random MDPs"](), (), lifespan)
        cells = {
            name: measured(
                args, place, name, [contestant(name, place, x, None) for x in trained[name]]
            )
            for name in names
        }
        title = f"random MDPs, {lifespan} updates"
        results[title] = {"references": references_of(args, place), "rules": cells}
    rows = [
        {name.replace("A2C", "LPG"): x for name, x in row.items()}
        for row in rows_of(results, "LPG")
    ]
    study.leave(args, rows, results=as_lists(results), seconds=time.perf_counter() - began)


if __name__ == "__main__":
    kinds = {Compare: compare, Lifespans: lifespans, Catch: catch, Check: check}
    study.main(kinds, __doc__)
