"""How fast? Seconds of a step of learning, for the parts whose speed decides.

    python benchmarks/throughput.py rollout --output runs/throughput-rollout
    python benchmarks/throughput.py updates --output runs/throughput-updates
    python benchmarks/throughput.py memory --output runs/throughput-memory

`rollout`: uniformly random actions in many copies of one task, beside gymnax's own auto-resetting ``step`` under
the same vmap. Each rollout returns either *rewards* and ends of episodes, or whole *transitions*.

`updates`: one meta-update of every kind of algorithm, from drawing the tasks to the new parameters, over a ladder
of sizes: what it takes to compile (and again, with the persistent cache that `training` switches on), to run, and
of memory. CPU time is that of all threads. Floating-point operations are those of matrix products alone, beside
what the device was seen to do in one large product; the roofline sets them against their factors and results in
memory, too.

`memory`: every memory that RL² can have, on long trials of a ten-armed bandit. *Learning* is one gradient
through a batch of recorded trials (the whole-sequence pass and its derivative), *acting* one batch of
trials.

Times are medians of repeats that are taken in turns, so that a busy machine is so for all, and ratios are medians
of ratios in one turn. On CPUs, pin the process to one core: threads that wait for each other cost more than
they bring.
"""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import study
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxmeta import evaluation, learners, plotting, rollouts, tasks
from jaxmeta.algorithms import rl2
from jaxmeta.networks.recurrent import MEMORIES
from jaxmeta.runs import experiments, training
from jaxmeta.runs.experiments import Experiment
from jaxmeta.types import Trajectory


class Memory(study.Study):
    """Memories, on trials of equal length and at equal width."""

    memories: Annotated[study.Names, study.known(MEMORIES)] = ("gru", "lstm", "linear", "none")
    """Memories to measure; ratios are of the first. `transformer` is long to wait for on a CPU."""
    num_steps: int = 500  # Steps of a trial.
    sizes: tuple[int, ...] = (64, 128)  # Widths.
    num_trials: tuple[int, ...] = (16, 64, 256)  # Trials in a batch.
    repeats: int = 5  # Timed calls of each.


class Rollout(study.Study):
    """Random actions, beside gymnax's own ``step``."""

    families: Annotated[study.Names, study.known(tasks.FAMILIES)] = ("cartpole", "navigation")
    num_streams: tuple[int, ...] = (4096,)  # Copies of the environment.
    num_steps: int = 100  # Steps of each.
    repeats: int = 11  # Timed calls of each.


def ours(family: tasks.TaskFamily, num_streams: int, num_steps: int) -> Callable:
    """``(key, task) -> transitions [num_streams, num_steps]`` by the library's rollout."""
    learner = evaluation.controller_learner(lambda key, task, obs: family.random_action(key))
    setup = rollouts.Setup(learner, family.env, num_streams, num_steps)

    def act(key: jax.Array, task: Any) -> dict[str, jax.Array]:
        data = rollouts.sample(key, (), task, (), setup=setup)
        seen = data.timestep.obs, data.action, data.reward, data.last, data.next_obs
        return dict(zip(RECORDS["transitions"], seen, strict=True))

    return act


def gymnaxs(family: tasks.TaskFamily, num_streams: int, num_steps: int) -> Callable:
    """The same by gymnax's ``reset``, ``step`` and ``sample``, as its documentation has it."""
    env, space = family.env, family.action_space

    def one(key: jax.Array, task: Any) -> dict[str, jax.Array]:
        reset_key, key = jax.random.split(key)
        obs, state = env.reset(reset_key, task)

        def step(carry: tuple, _: None) -> tuple[tuple, dict[str, jax.Array]]:
            key, obs, state = carry
            key, action_key, step_key = jax.random.split(key, 3)
            action = space.sample(action_key)
            after, state, reward, ended, late, info = env.step(step_key, state, action, task)
            record = obs, action, reward, ended | late, info["final_observation"]
            seen = dict(zip(RECORDS["transitions"], record, strict=True))
            return (key, after, state), seen

        return jax.lax.scan(step, (key, obs, state), length=num_steps)[1]

    return lambda key, task: jax.vmap(one, (0, None))(jax.random.split(key, num_streams), task)


RECORDS = {
    "rewards": ("reward", "last"),
    "transitions": ("obs", "action", "reward", "last", "next_obs"),
}


def compiled_rollouts(
    family: tasks.TaskFamily, num_streams: int, num_steps: int, record: str
) -> dict:
    """Compiled rollouts by side that return what the record has."""
    task = family.train(jax.random.key(0))

    def of(make: Callable) -> Callable:
        act = make(family, num_streams, num_steps)

        def kept(key: jax.Array, task: Any) -> dict[str, jax.Array]:
            seen = act(key, task)
            return {name: seen[name] for name in RECORDS[record]}

        return partial(study.compiled(kept, jax.random.key(0), task).call, jax.random.key(1), task)

    return {"ours": of(ours), "gymnax": of(gymnaxs)}


ROLLOUT_COLUMNS = """
    family = {family} | streams = {num_streams} | record = {record} | M steps/s = {ours:.2f}
    | gymnax, M steps/s = {gymnax:.2f} | × as fast = {ratio:.2f} | from, to = {low:.2f}, {high:.2f}
"""


def run_rollout(main: Rollout) -> None:
    rows, shown = [], []
    for name, num_streams, record in itertools.product(main.families, main.num_streams, RECORDS):
        calls = compiled_rollouts(tasks.make(name), num_streams, main.num_steps, record)
        seconds = study.in_turns(calls, main.repeats)
        steps = num_streams * main.num_steps
        speed = {side: steps / statistics.median(x) for side, x in seconds.items()}
        ratios = [y / x for x, y in zip(seconds["ours"], seconds["gymnax"], strict=True)]
        row = {"family": name, "num_streams": num_streams, "record": record, "seconds": seconds}
        row |= {f"{side}_steps_per_second": x for side, x in speed.items()}
        rows.append(row | {"ratio": statistics.median(ratios), "ratios": ratios})
        millions = {side: x / 1e6 for side, x in speed.items()}
        shown.append(rows[-1] | millions | dict(low=min(ratios), high=max(ratios)))
        study.say(f"{name}, {num_streams} streams, {record} measured")
    table = study.table(ROLLOUT_COLUMNS, shown)
    study.leave(main, table, csv=table, rows=rows)


def update_of(
    algorithm: str, family: str, num_tasks: int, config: dict, **settings: Any
) -> Experiment:
    """An algorithm on a family with ``settings``, so many tasks in a meta-update."""
    plan = training.Config(num_tasks=num_tasks)
    return Experiment(algorithm, family, config=config, family_settings=settings, plan=plan)


BANDITS = dict(num_arms=2, num_pulls=100)
RL2 = dict(memory_size=128, num_epochs=4, num_minibatches=4)
REPLAY = dict(replay_trials=4096, replayed_trials=64)
GRADIENT = dict(num_streams=20, hidden_sizes=(64, 64))
MDPS = dict(num_states=8, num_actions=4, horizon=20)
UPDATES = {
    "MAML": update_of("maml", "navigation", 20, GRADIENT),
    "ProMP": update_of("promp", "navigation", 20, GRADIENT),
    "RL², GRU": update_of("rl2", "bernoulli_bandit", 256, RL2 | {"memory": "gru"}, **BANDITS),
    "RL², linear": update_of("rl2", "bernoulli_bandit", 256, RL2 | {"memory": "linear"}, **BANDITS),
    "recurrent Q, GRU": update_of("recurrent_q", "bernoulli_bandit", 256, RL2, **BANDITS),
    "recurrent Q, GRU, replay": update_of(
        "recurrent_q", "bernoulli_bandit", 256, RL2 | REPLAY, **BANDITS
    ),
    "recurrent SAC, GRU": update_of(
        "recurrent_sac",
        "half_circle",
        64,
        dict(memory_size=128, num_episodes=2, gradient_steps=16) | REPLAY,
    ),
    "meta-gradient": update_of("meta_gradient", "cartpole", 20, dict(num_agents=20)),
    "LPG": update_of("learned_objective", "tabular", 32, dict(num_agents=32), **MDPS),
}
"""MAML and ProMP: 20 tasks of 20 episodes of 100 steps, one inner step. RL²: 256 trials of 100 pulls of two arms,
width 128, 4 passes of 4 minibatches. Recurrent Q: the same; with replay each minibatch of 64 has 64 old trials beside it. Recurrent SAC: 64 trials of 40 steps, width 128, 16 steps on 64 old
trials. Meta-gradient: 20 lives of 16 streams of 20 steps. LPG: 32 lives of 8 streams of
20 steps, 5 updates."""


class Updates(study.Study):
    """Meta-updates, one algorithm after the other."""

    algorithms: Annotated[study.Names, study.known(UPDATES)] = tuple(UPDATES)  # To measure.
    scales: tuple[int, ...] = (1,)  # Times as many tasks, a ladder of them.
    repeats: int = 7  # Timed calls of each.

    def __post_init__(self) -> None:
        super().__post_init__()
        lives = {"meta-gradient", "LPG"} & set(self.algorithms)
        for scale, name in itertools.product(self.scales, lives):
            if scale > 1:
                raise ValueError(f"scales={scale} must be 1 with {name}, whose lives are a setting")


class Work(NamedTuple):
    """The work of one run of a program."""

    flop: int  # Floating-point operations of all products of matrices.
    bytes: int  # Their factors and results, read or written once.


def products(jaxpr: Any) -> Work:
    """The work of all products of matrices, of loops as often as they go round.

    Loops of unknown length count once; the compiler's own count does so for all.
    """
    total = Work(0, 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            factors, result = [x.aval for x in equation.invars], equation.outvars[0].aval
            summed = math.prod(factors[0].shape[axis] for axis in contracted)
            moved = sum(x.size * x.dtype.itemsize for x in [*factors, result])
            total = Work(total.flop + 2 * summed * result.size, total.bytes + moved)
        inner = [
            products(x.jaxpr if isinstance(x, ClosedJaxpr) else x)
            for param in equation.params.values()
            for x in (param if isinstance(param, tuple | list) else [param])
            if isinstance(x, ClosedJaxpr | Jaxpr)
        ]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        times = equation.params.get("length", 1)
        for work in inner:
            total = Work(total.flop + times * work.flop, total.bytes + times * work.bytes)
    return total


class Device(NamedTuple):
    """The best rates that the device was seen to reach."""

    flop_per_second: float  # In one large product of matrices, in single precision.
    bytes_per_second: float  # Read and written, in adding to a vector that no cache holds.


def device_rates() -> Device:
    """The rates of this device."""
    matrix = jax.random.normal(jax.random.key(0), (2048, 2048))
    vector = jnp.zeros(2**26)  # 256 MiB
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    seconds = study.in_turns({"product": lambda: product(matrix), "add": lambda: add(vector)}, 5)
    return Device(2 * 2048**3 / min(seconds["product"]), 2 * vector.nbytes / min(seconds["add"]))


def compiled_twice(function: Callable, run: training.Run) -> tuple[Callable, list[float]]:
    """The compiled function, and the seconds of compiling it anew and again with the cache."""
    programs = []
    with tempfile.TemporaryDirectory() as cache:
        training.enable_compilation_cache(cache)
        for _ in range(2):
            jax.clear_caches()
            compilation_cache.reset_cache()
            programs.append(study.compiled(function, run))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    return programs[-1].call, [program.seconds for program in programs]


def measure_update(name: str, scale: int, repeats: int) -> dict[str, Any]:
    """Times, memory and work of a meta-update on ``scale`` times as many tasks."""
    algorithm, family = experiments.make(UPDATES[name])
    num_tasks = UPDATES[name].plan.num_tasks * scale
    run = study.one(algorithm, 0)
    advance = study.advancing(algorithm, family, num_tasks=num_tasks)
    call, compiling = compiled_twice(advance, run)
    work = products(jax.make_jaxpr(advance)(run).jaxpr)
    env_steps = int(call(run)[1]["env_steps"][0])
    wall, cpu = [], []
    for _ in range(repeats):
        began = time.process_time()
        wall.append(study.timed(lambda: call(run))[1])
        cpu.append(time.process_time() - began)
    return {
        "algorithm": name,
        "num_tasks": num_tasks,
        "env_steps": env_steps,
        "compile_seconds": compiling[0],
        "compile_again_seconds": compiling[1],
        "seconds": wall,
        "cpu_seconds": cpu,
        "flop": work.flop,
        "bytes": work.bytes,
        "flop_per_second": work.flop / statistics.median(wall),
        "temporary_bytes": call.memory_analysis().temp_size_in_bytes,
    }


def run_updates(main: Updates) -> None:
    device = device_rates()
    rows = []
    for name, scale in itertools.product(main.algorithms, main.scales):
        row = measure_update(name, scale, main.repeats)
        row["intensity"] = row["flop"] / row["bytes"]
        # Williams et al. 2009, "Roofline": fetching a number may take longer than using it.
        row["roof"] = min(device.flop_per_second, row["intensity"] * device.bytes_per_second)
        rows.append(row | {f"device_{rate}": x for rate, x in device._asdict().items()})
        study.say(f"{name}, {row['num_tasks']} tasks measured")
    table = [shown(row) for row in rows]
    study.leave(main, table, csv=table, rows=rows)
    points = study.panels(rows, "algorithm", "intensity", {"speed": "flop_per_second"})["speed"]
    plotting.roofline(main.output / "roofline.png", points, **device._asdict())


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A meta-update's row of the table."""
    wall, cpu = (statistics.median(row[name]) for name in ("seconds", "cpu_seconds"))
    share = row["flop_per_second"] / row["device_flop_per_second"]
    return {
        "meta-update": row["algorithm"],
        "tasks": str(row["num_tasks"]),
        "env steps": study.spaced(row["env_steps"]),
        "time, s": f"{wall:.3f}",
        "k env steps/s": f"{row['env_steps'] / wall / 1e3:.1f}",
        "k env steps a CPU second": f"{row['env_steps'] / cpu / 1e3:.1f}",
        "GFLOP/s": f"{row['flop_per_second'] / 1e9:.1f}",
        "of the device's": f"{100 * share:.0f} %",
        "memory, MB": f"{row['temporary_bytes'] / 1e6:.1f}",
        "compiling, s": f"{row['compile_seconds']:.1f}",
        "again, s": f"{row['compile_again_seconds']:.1f}",
    }


def steps(main: Memory, memory: str, size: int, num_trials: int) -> dict[str, Callable]:
    """Compiled calls: ``acting`` and ``learning``."""
    family = tasks.make("bernoulli_bandit", num_arms=10, num_pulls=main.num_steps)
    config = rl2.Config(memory=memory, memory_size=size)
    network = rl2.network_of(family, config)
    parts = learners.recurrent.recurrent_learner(family, config, network)
    meta = rl2.rl2(family, config).init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, num_trials, split="train")

    def loss(params: Any, data: Trajectory) -> jax.Array:
        distribution, v = jax.vmap(network.unroll, in_axes=(None, 0, 0))(
            params, data.memory.state, jax.vmap(parts.inputs, (None, 0))(meta, data)
        )
        gain = jnp.exp(distribution.log_prob(data.action) - data.log_prob) * data.reward
        return jnp.mean(v**2) - jnp.mean(gain)

    key = jax.random.key(2)
    acting = partial(study.compiled(parts.trials, key, meta, drawn).call, key, meta, drawn)
    data = jax.block_until_ready(acting())
    learning = study.compiled(jax.grad(loss), meta.params, data).call
    return {"acting": acting, "learning": partial(learning, meta.params, data)}


def measure(main: Memory, size: int, num_trials: int) -> list[dict[str, Any]]:
    """Times of every memory."""
    calls = {
        (name, part): call
        for name in main.memories
        for part, call in steps(main, name, size, num_trials).items()
    }
    seconds = study.in_turns(calls, main.repeats)
    median = {which: statistics.median(x) for which, x in seconds.items()}
    first = main.memories[0]
    return [
        {
            "memory": name,
            "size": size,
            "num_trials": num_trials,
            **{f"{part}_seconds": median[name, part] for part in ("acting", "learning")},
            "learning_speedup": median[first, "learning"] / median[name, "learning"],
        }
        for name in main.memories
    ]


def run_memory(main: Memory) -> None:
    rows = []
    for size, num_trials in itertools.product(main.sizes, main.num_trials):
        rows += measure(main, size, num_trials)
        study.say(f"width {size}, {num_trials} trials measured")
    columns = (
        "width = {size} | trials = {num_trials} | memory = {memory} | learning, s = {learning_seconds:.3f} "
        f"| × as fast as {main.memories[0]} = {{learning_speedup:.2f}} | acting, s = {{acting_seconds:.3f}}"
    )
    table = study.table(columns, rows)
    study.leave(main, table, csv=table, rows=rows)


if __name__ == "__main__":
    study.main({Rollout: run_rollout, Updates: run_updates, Memory: run_memory}, __doc__)
