"""How fast? Seconds of a step of learning, for the parts whose speed decides.

    python benchmarks/throughput.py rollout --output runs/throughput-rollout
    python benchmarks/throughput.py updates --output runs/throughput-updates
    python benchmarks/throughput.py memory --output runs/throughput-memory

`rollout`: uniformly random actions in many copies of one task, beside gymnax's own auto-resetting ``step`` under
the same vmap. What is asked of a rollout decides what is computed: *rewards* and ends of episodes alone, or all
*transitions*.

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
they bring. Leaves results.json, table.md, table.csv and, of `updates`, roofline.png in the output folder.
"""

import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxmeta import checks, learners, plotting, rollouts, tasks
from jaxmeta.algorithms import learned_objective, maml, meta_gradient, promp, rl2
from jaxmeta.networks import recurrent
from jaxmeta.runs import reports, training
from jaxmeta.types import Learner, MetaAlgorithm, Trajectory


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memories, on trials of equal length and at equal width."""

    output: Path = Path("runs/throughput-memory")
    """Folder for the results; made anew."""
    memories: tuple[str, ...] = ("gru", "lstm", "linear", "none")
    """What to measure; the first is what ratios are of. `transformer` is long to wait for on a CPU."""
    num_steps: int = 500
    """Steps of a trial."""
    sizes: tuple[int, ...] = (64, 128)
    """Widths."""
    num_trials: tuple[int, ...] = (16, 64, 256)
    """Trials in a batch."""
    repeats: int = 5
    """Timed calls of each."""

    def __post_init__(self) -> None:
        for name in ("memories", "sizes", "num_trials"):
            checks.some(name, getattr(self, name))
        for name in self.memories:
            checks.choice("memories", name, recurrent.MEMORIES)
        for name in ("num_steps", "repeats"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("sizes", "num_trials"):
            for value in getattr(self, name):
                checks.at_least(name, value, 1)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Random actions, beside gymnax's own ``step``."""

    output: Path = Path("runs/throughput-rollout")
    """Folder for the results; made anew."""
    families: tuple[str, ...] = ("cartpole", "navigation")
    """Families of tasks to act in."""
    num_streams: tuple[int, ...] = (4096,)
    """Copies of the environment."""
    num_steps: int = 100
    """Steps of each."""
    repeats: int = 11
    """Timed calls of each."""

    def __post_init__(self) -> None:
        for name in ("families", "num_streams"):
            checks.some(name, getattr(self, name))
        for name in self.families:
            checks.choice("families", name, tasks.names())
        for name in ("num_steps", "repeats"):
            checks.at_least(name, getattr(self, name), 1)
        for value in self.num_streams:
            checks.at_least("num_streams", value, 1)


Outcome = tuple[list[dict[str, str]], list[dict[str, Any]]]
"""Rows of the table, and all that was measured."""


def timed(calls: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[float]]:
    """Seconds of every call, taken in turns."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            # Once untimed: whoever comes after a larger program pays for the memory it gave back.
            jax.block_until_ready(call())
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ours(family: tasks.TaskFamily, num_streams: int, num_steps: int) -> Callable:
    """``(key, task) -> transitions [num_streams, num_steps]`` by the library's rollout."""
    learner = Learner(
        init=lambda key, meta: (),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, timestep: (
            family.random_action(key),
            jnp.zeros(()),
            memory,
        ),
        update=lambda key, meta, agent, data: agent,
    )
    world: dict[str, Any] = dict(learner=learner, env=family.env)

    def act(key: jax.Array, task: Any) -> dict[str, jax.Array]:
        begin_key, act_key = jax.random.split(key)
        streams = rollouts.begin_streams(begin_key, (), task, **world, num_streams=num_streams)
        _, data = rollouts.experience(act_key, (), task, (), streams, **world, num_steps=num_steps)
        return {
            "obs": data.timestep.obs,
            "action": data.action,
            "reward": data.reward,
            "last": data.last,
            "next_obs": data.next_obs,
        }

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
            after, state, reward, terminated, truncated, info = env.step(
                step_key, state, action, task
            )
            seen = {
                "obs": obs,
                "action": action,
                "reward": reward,
                "last": terminated | truncated,
                "next_obs": info["final_observation"],
            }
            return (key, after, state), seen

        return jax.lax.scan(step, (key, obs, state), length=num_steps)[1]

    return lambda key, task: jax.vmap(one, (0, None))(jax.random.split(key, num_streams), task)


RECORDS = {
    "rewards": ("reward", "last"),
    "transitions": ("obs", "action", "reward", "last", "next_obs"),
}


def run_rollout(main: Rollout) -> Outcome:
    rows = []
    for name in main.families:
        family = tasks.make(name)
        task = family.train(jax.random.key(0))
        for num_streams in main.num_streams:
            for record, kept in RECORDS.items():
                calls = {}
                for side, make in (("ours", ours), ("gymnax", gymnaxs)):
                    act = make(family, num_streams, main.num_steps)
                    call = jax.jit(
                        lambda key, task, act=act, kept=kept: {x: act(key, task)[x] for x in kept}
                    )
                    compiled = call.lower(jax.random.key(0), task).compile()
                    calls[side] = lambda compiled=compiled: compiled(jax.random.key(1), task)  # noqa: B023
                seconds = timed(calls, main.repeats)
                steps = num_streams * main.num_steps
                ratios = [y / x for x, y in zip(seconds["ours"], seconds["gymnax"], strict=True)]
                rows.append(
                    {
                        "family": name,
                        "num_streams": num_streams,
                        "record": record,
                        "seconds": seconds,
                        **{
                            f"{side}_steps_per_second": steps / statistics.median(x)
                            for side, x in seconds.items()
                        },
                        "ratio": statistics.median(ratios),
                        "ratios": ratios,
                    }
                )
                print(
                    f"{name}, {num_streams} streams, {record} measured", file=sys.stderr, flush=True
                )
    table = [
        {
            "family": row["family"],
            "streams": str(row["num_streams"]),
            "record": row["record"],
            "M steps/s": f"{row['ours_steps_per_second'] / 1e6:.2f}",
            "gymnax, M steps/s": f"{row['gymnax_steps_per_second'] / 1e6:.2f}",
            "× as fast": f"{row['ratio']:.2f}",
            "from, to": f"{min(row['ratios']):.2f}, {max(row['ratios']):.2f}",
        }
        for row in rows
    ]
    return table, rows


@dataclasses.dataclass(frozen=True)
class Update:
    """A meta-update to measure."""

    family: Callable[[], tasks.TaskFamily]
    algorithm: Callable[[tasks.TaskFamily], MetaAlgorithm]
    num_tasks: int


def _rl2(memory: Any) -> Update:
    config = rl2.Config(memory=memory, memory_size=128, num_epochs=4, num_minibatches=4)
    return Update(
        lambda: tasks.make("bernoulli_bandit", num_arms=2, num_pulls=100),
        lambda family: rl2.rl2(family, config),
        256,
    )


NETWORK = (64, 64)
UPDATES = {
    "MAML": Update(
        lambda: tasks.make("navigation"),
        lambda family: maml.maml(family, maml.Config(num_streams=20, hidden_sizes=NETWORK)),
        20,
    ),
    "ProMP": Update(
        lambda: tasks.make("navigation"),
        lambda family: promp.promp(family, promp.Config(num_streams=20, hidden_sizes=NETWORK)),
        20,
    ),
    "RL², GRU": _rl2("gru"),
    "RL², linear": _rl2("linear"),
    "meta-gradient": Update(
        lambda: tasks.make("cartpole"),
        lambda family: meta_gradient.meta_gradient(family, meta_gradient.Config(num_agents=20)),
        20,
    ),
    "LPG": Update(
        lambda: tasks.make("tabular", num_states=8, num_actions=4, horizon=20),
        lambda family: learned_objective.learned_objective(
            family, learned_objective.Config(num_agents=32)
        ),
        32,
    ),
}
"""MAML and ProMP: 20 tasks of 20 episodes of 100 steps, one inner step. RL²: 256 trials of 100 pulls of two arms,
width 128, 4 passes of 4 minibatches. Meta-gradient: 20 lives of 16 streams of 20 steps. LPG: 32 lives of 8 streams of
20 steps, 5 updates."""


@dataclasses.dataclass(frozen=True)
class Updates:
    """Meta-updates, one algorithm after the other."""

    output: Path = Path("runs/throughput-updates")
    """Folder for the results; made anew."""
    algorithms: tuple[str, ...] = tuple(UPDATES)
    """What to measure."""
    scales: tuple[int, ...] = (1,)
    """Times as many tasks, a ladder of them."""
    repeats: int = 7
    """Timed calls of each."""

    def __post_init__(self) -> None:
        checks.some("algorithms", self.algorithms)
        for name in self.algorithms:
            checks.choice("algorithms", name, UPDATES)
        checks.at_least("repeats", self.repeats, 1)
        checks.some("scales", self.scales)
        for scale in self.scales:
            checks.at_least("scales", scale, 1)
            for name in {"meta-gradient", "LPG"} & set(self.algorithms):
                if scale > 1:
                    raise ValueError(
                        f"scales={scale} must be 1 with {name}, whose lives are a setting"
                    )


class Work(NamedTuple):
    """What one run of a program asks of a device."""

    flop: int
    """Floating-point operations of all products of matrices."""
    bytes: int
    """Their factors and results, read or written once."""


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
    """What the device was seen to do at best."""

    flop_per_second: float
    """In one large product of matrices, in single precision."""
    bytes_per_second: float
    """Read and written, in adding to a vector that no cache holds."""


def device_rates() -> Device:
    matrix = jax.random.normal(jax.random.key(0), (2048, 2048))
    vector = jnp.zeros(2**26)  # 256 MiB
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    seconds = timed({"product": lambda: product(matrix), "add": lambda: add(vector)}, 5)
    return Device(2 * 2048**3 / min(seconds["product"]), 2 * vector.nbytes / min(seconds["add"]))


def measure_update(name: str, scale: int, repeats: int) -> dict[str, Any]:
    update = UPDATES[name]
    family, num_tasks = update.family(), update.num_tasks * scale
    algorithm = update.algorithm(family)
    run = jax.jit(lambda key: training.begin(key, algorithm=algorithm))(jax.random.key(0))

    def advance(run: training.Run) -> Any:
        return training.advance(
            run,
            jnp.asarray(1),
            algorithm=algorithm,
            family=family,
            num_tasks=num_tasks,
            max_updates=1,
        )

    compiling = []  # anew, and once more with what that has left in the cache
    with tempfile.TemporaryDirectory() as cache:
        training.enable_compilation_cache(cache)
        for _ in range(2):
            jax.clear_caches()
            compilation_cache.reset_cache()
            began = time.perf_counter()
            call = jax.jit(advance).lower(run).compile()
            compiling.append(time.perf_counter() - began)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    work = products(jax.make_jaxpr(advance)(run).jaxpr)
    env_steps = int(call(run)[1]["env_steps"][0])
    wall, cpu = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        cpu_began = time.process_time()
        jax.block_until_ready(call(run))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
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


def run_updates(main: Updates) -> Outcome:
    device = device_rates()
    rows = []
    for name in main.algorithms:
        for scale in main.scales:
            row = measure_update(name, scale, main.repeats)
            # Williams et al. 2009, "Roofline": who does little with a number is held up by fetching it.
            row["roof"] = min(
                device.flop_per_second, row["flop"] / row["bytes"] * device.bytes_per_second
            )
            rows.append(row | {f"device_{rate}": x for rate, x in device._asdict().items()})
            print(f"{name}, {row['num_tasks']} tasks measured", file=sys.stderr, flush=True)
    table = [
        {
            "meta-update": row["algorithm"],
            "tasks": str(row["num_tasks"]),
            "env steps": f"{row['env_steps']:,}".replace(",", " "),
            "time, s": f"{statistics.median(row['seconds']):.3f}",
            "k env steps/s": f"{row['env_steps'] / statistics.median(row['seconds']) / 1e3:.1f}",
            "k env steps a CPU second": f"{row['env_steps'] / statistics.median(row['cpu_seconds']) / 1e3:.1f}",
            "GFLOP/s": f"{row['flop_per_second'] / 1e9:.1f}",
            "of the device's": f"{100 * row['flop_per_second'] / device.flop_per_second:.0f} %",
            "memory, MB": f"{row['temporary_bytes'] / 1e6:.1f}",
            "compiling, s": f"{row['compile_seconds']:.1f}",
            "again, s": f"{row['compile_again_seconds']:.1f}",
        }
        for row in rows
    ]
    return table, rows


def draw_roofline(path: Path, rows: list[dict[str, Any]]) -> None:
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        intensity, speed = points.setdefault(row["algorithm"], ([], []))
        intensity.append(row["flop"] / row["bytes"])
        speed.append(row["flop_per_second"])
    plotting.roofline(
        path,
        points,
        flop_per_second=rows[0]["device_flop_per_second"],
        bytes_per_second=rows[0]["device_bytes_per_second"],
    )


def steps(main: Memory, memory: str, size: int, num_trials: int) -> dict[str, Callable]:
    """Compiled calls: ``acting`` and ``learning``."""
    family = tasks.make("bernoulli_bandit", num_arms=10, num_pulls=main.num_steps)
    config = rl2.Config(memory=memory, memory_size=size)
    network = rl2.recurrent_actor_critic(family, config)
    parts = learners.recurrent_learner(family, config, network)
    meta = rl2.rl2(family, config).init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, num_trials, split="train")

    def loss(params: Any, data: Trajectory) -> jax.Array:
        distribution, v = jax.vmap(network.unroll, in_axes=(None, 0, 0))(
            params, data.memory.state, jax.vmap(parts.inputs, (None, 0))(meta, data)
        )
        gain = jnp.exp(distribution.log_prob(data.action) - data.log_prob) * data.reward
        return jnp.mean(v**2) - jnp.mean(gain)

    key = jax.random.key(2)
    acting = jax.jit(parts.trials).lower(key, meta, drawn).compile()
    data = jax.block_until_ready(acting(key, meta, drawn))
    learning = jax.jit(jax.grad(loss)).lower(meta.params, data).compile()
    return {
        "acting": lambda: acting(key, meta, drawn),
        "learning": lambda: learning(meta.params, data),
    }


def measure(main: Memory, size: int, num_trials: int) -> list[dict[str, Any]]:
    calls = {
        (name, part): call
        for name in main.memories
        for part, call in steps(main, name, size, num_trials).items()
    }
    seconds = timed(calls, main.repeats)
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


def run_memory(main: Memory) -> Outcome:
    rows = []
    for size in main.sizes:
        for num_trials in main.num_trials:
            rows += measure(main, size, num_trials)
            print(f"width {size}, {num_trials} trials measured", file=sys.stderr, flush=True)
    speed = f"× as fast as {main.memories[0]}"
    table = [
        {
            "width": str(row["size"]),
            "trials": str(row["num_trials"]),
            "memory": row["memory"],
            "learning, s": f"{row['learning_seconds']:.3f}",
            speed: f"{row['learning_speedup']:.2f}",
            "acting, s": f"{row['acting_seconds']:.3f}",
        }
        for row in rows
    ]
    return table, rows


KINDS: dict[str, tuple[type, Callable[[Any], Outcome]]] = {
    "rollout": (Rollout, run_rollout),
    "updates": (Updates, run_updates),
    "memory": (Memory, run_memory),
}


def main(argv: list[str]) -> None:
    settings = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in KINDS.items()}, args=argv, description=__doc__
    )
    reports.refuse_to_overwrite(settings.output)
    if not isinstance(settings, Updates):  # which measures what compiling takes without it
        training.enable_compilation_cache()
    (run,) = (run for kind, run in KINDS.values() if isinstance(settings, kind))
    table, rows = run(settings)
    reports.leave(settings.output, dataclasses.asdict(settings), table, rows=rows)
    reports.write_csv(settings.output / "table.csv", table)
    if isinstance(settings, Updates):
        draw_roofline(settings.output / "roofline.png", rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
