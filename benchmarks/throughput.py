"""How fast? Seconds of a step of learning, for the parts whose speed decides.

    python benchmarks/throughput.py memory --output runs/throughput-memory

`memory`: every memory that RL² can have, on long trials of a ten-armed bandit. *Learning* is one gradient
through a batch of recorded trials (the whole-sequence pass and its derivative), *acting* one batch of
trials; medians of repeats that are taken in turns, so that a busy machine is so for all. Leaves
results.json and table.md in the output folder.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxmeta import checks, memories, memory_learner, reports, tasks, training
from jaxmeta.algorithms import rl2
from jaxmeta.types import Trajectory


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
            if not getattr(self, name):
                raise ValueError(f"{name}=() must name at least one")
        for name in self.memories:
            checks.choice("memories", name, memories.MEMORIES)
        for name in ("num_steps", "repeats"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("sizes", "num_trials"):
            for value in getattr(self, name):
                checks.at_least(name, value, 1)


def steps(main: Memory, memory: str, size: int, num_trials: int) -> dict[str, Callable]:
    """Compiled calls: ``acting`` and ``learning``."""
    family = tasks.make("bernoulli_bandit", num_arms=10, num_pulls=main.num_steps)
    config = rl2.Config(memory=memory, memory_size=size)
    network = rl2.recurrent_actor_critic(family, config)
    parts = memory_learner.memory_learner(family, config, network)
    meta = rl2.rl2(family, config).init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, num_trials, split="train")

    def loss(params: Any, data: Trajectory) -> jax.Array:
        distribution, v = jax.vmap(network.unroll, in_axes=(None, 0, 0))(
            params, data.memory.state, jax.vmap(parts.inputs)(data)
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
    calls = {name: steps(main, name, size, num_trials) for name in main.memories}
    seconds: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in parts} for name, parts in calls.items()
    }
    for _ in range(main.repeats):
        for name, parts in calls.items():
            for part, call in parts.items():
                # Once untimed: whoever comes after a larger program pays for the memory it gave back.
                jax.block_until_ready(call())
                began = time.perf_counter()
                jax.block_until_ready(call())
                seconds[name][part].append(time.perf_counter() - began)
    rows = []
    for name, parts in seconds.items():
        median = {part: statistics.median(x) for part, x in parts.items()}
        first = {part: statistics.median(x) for part, x in seconds[main.memories[0]].items()}
        rows.append(
            {
                "memory": name,
                "size": size,
                "num_trials": num_trials,
                **{f"{part}_seconds": x for part, x in median.items()},
                "learning_speedup": first["learning"] / median["learning"],
            }
        )
    return rows


def run_memory(main: Memory) -> None:
    rows = []
    for size in main.sizes:
        for num_trials in main.num_trials:
            rows += measure(main, size, num_trials)
            print(f"width {size}, {num_trials} trials measured", file=sys.stderr, flush=True)
    speed = f"× as fast as {main.memories[0]}"
    lines = reports.markdown(
        [
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
    )
    settings = {**dataclasses.asdict(main), "output": str(main.output)}
    machine = reports.machine()
    main.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": settings, "machine": machine, "rows": rows}, indent=2)
    (main.output / "results.json").write_text(text + "\n", encoding="utf-8")
    (main.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"{machine}; results in {main.output}", file=sys.stderr)


def main(argv: list[str]) -> None:
    # One kind of measurement so far: a subcommand all the same, others will stand beside it.
    settings = tyro.extras.subcommand_cli_from_dict(
        {"memory": Memory}, args=argv, description=__doc__
    )
    reports.refuse_to_overwrite(settings.output)
    training.enable_compilation_cache()
    run_memory(settings)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
