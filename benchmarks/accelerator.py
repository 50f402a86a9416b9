"""How fast is the library on one accelerator? A table in at most eight minutes.

    python benchmarks/accelerator.py --output runs/accelerator
    python benchmarks/accelerator.py --small --output runs/accelerator-small    # on any machine, in a minute or two

*Rollouts*: uniformly random actions in many copies of CartPole, rewards alone, beside gymnax's own auto-resetting ``step``
under vmap. *MAML*: a meta-update on 2-D navigation, 20 episodes of 100 steps a task before and after the inner step, beside a
meta-update written by hand for this one task: one loop over time for all tasks, returns as a product with a matrix,
the other streams' mean as a baseline, and no masks, guards, options or metrics. *RL²*: a meta-update of a GRU of 128 on trials of
100 pulls of two arms, 4 passes of 4 minibatches, with products of matrices in full precision and in bfloat16.

Each row is one JSON line in rows.jsonl. The script writes it as soon as it is measured, so a job that is cut off keeps its rows. After
``seconds`` the script begins no new row. Times are medians of repeats that are taken in turns with the row's other side.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import study
import throughput

from jaxmeta import tasks
from jaxmeta.algorithms import maml, rl2
from jaxmeta.runs import reports

PARTS = ("rollout", "maml", "rl2")
LARGE = {"rollout": (4096, 524_288), "maml": (20, 80, 320, 1280), "rl2": (2048, 16_384)}
SMALL = {"rollout": (16, 64), "maml": (2, 4), "rl2": (16, 32)}
"""Copies of the environment, tasks, and trials."""
NUM_STREAMS, HIDDEN = 20, 64
DISCOUNT, STEP_SIZE, LEARNING_RATE = 0.99, 0.5, 1e-3


class Main(study.Study):
    """The measurements to make."""

    parts: Annotated[study.Names, study.known(PARTS)] = PARTS
    small: bool = False  # Sizes for a quick look, or for a CPU.
    num_steps: int = 100  # Steps of a stream or a trial.
    unroll: int = 1  # Steps that the library's rollouts are unrolled by.
    repeats: int = 5  # Timed calls of each program.
    seconds: int = 420  # After which nothing new is begun.


class Case(NamedTuple):
    """Programs to be measured in turns."""

    part: str
    size: int
    env_steps: int  # Of one call.
    programs: dict[str, Callable[[], study.Program]]  # Compiled when called; arguments are bound.


def bound(function: Callable, *arguments: Any) -> study.Program:
    """``function`` compiled, to be called without arguments."""
    program = study.compiled(function, *arguments)
    return study.Program(partial(program.call, *arguments), program.seconds)


def rollout_case(main: Main, size: int) -> Case:
    """Random actions by the library and by gymnax."""
    family = tasks.make("cartpole")
    task = family.train(jax.random.key(0))

    def program(make: Callable) -> study.Program:
        act = make(family, size, main.num_steps)

        def rewards(key: jax.Array, task: Any) -> dict[str, jax.Array]:
            seen = act(key, task)
            return {name: seen[name] for name in throughput.RECORDS["rewards"]}

        return bound(rewards, jax.random.key(1), task)

    sides = {"jaxmeta": throughput.ours, "gymnax": throughput.gymnaxs}
    programs = {name: partial(program, make) for name, make in sides.items()}
    return Case("rollout", size, size * main.num_steps, programs)


def maml_case(main: Main, size: int) -> Case:
    """MAML by the library and by hand."""
    family = tasks.make("navigation", horizon=main.num_steps)
    config = maml.Config(
        num_streams=NUM_STREAMS,
        hidden_sizes=(HIDDEN, HIDDEN),
        inner_surrogate="score",
        baseline="time",
        unroll=main.unroll,
    )
    hyper = maml.Hyper(discount=DISCOUNT, gae_lambda=1.0, step_size=STEP_SIZE)
    algorithm = maml.maml(family, config, hyper)

    def ours() -> study.Program:
        run = study.one(algorithm, 0)
        return bound(study.advancing(algorithm, family, num_tasks=size), run)

    def by_hand() -> study.Program:
        state = hand_begun(jax.random.key(0))
        update = partial(hand_update, num_tasks=size, num_steps=main.num_steps)
        return bound(update, jax.random.key(1), state)

    programs = {"jaxmeta": ours, "by hand": by_hand}
    return Case("maml", size, 2 * size * NUM_STREAMS * main.num_steps, programs)


def hand_begun(key: jax.Array) -> tuple[dict, Any]:
    """Parameters of a Gaussian policy with two hidden layers, and Adam's state."""
    sizes = (2, HIDDEN, HIDDEN, 2)
    pairs = zip(jax.random.split(key, 3), sizes, sizes[1:], strict=False)
    params = {
        "weights": [jax.random.normal(k, (a, b)) / a**0.5 for k, a, b in pairs],
        "biases": [jnp.zeros(b) for b in sizes[1:]],
        "log_std": jnp.full(2, jnp.log(0.1)),
    }
    return params, optax.adam(LEARNING_RATE).init(params)


def hand_mean(params: dict, x: jax.Array) -> jax.Array:
    """The mean action at positions ``[..., 2]``."""
    *hidden, last = zip(params["weights"], params["biases"], strict=True)
    for w, b in hidden:
        x = jnp.tanh(x @ w + b)
    return x @ last[0] + last[1]


def hand_rollout(params: dict, noise: jax.Array, goal: jax.Array) -> tuple[jax.Array, ...]:
    """Positions, actions ``[T, N, 2]`` and rewards ``[T, N]`` of N streams with ``noise [T, N, 2]``."""
    std = jnp.exp(params["log_std"])

    def step(position: jax.Array, noise: jax.Array) -> tuple:
        action = hand_mean(params, position) + std * noise
        after = position + jnp.clip(action, -0.1, 0.1)
        return after, (position, action, -jnp.sum((after - goal) ** 2, axis=-1))

    begun = jnp.zeros(noise.shape[1:])
    return jax.lax.stop_gradient(jax.lax.scan(step, begun, noise)[1])


def hand_loss(params: dict, data: tuple[jax.Array, ...]) -> jax.Array:
    """Minus the policy-gradient objective, with the other streams' mean return at each step as a baseline."""
    position, action, reward = data
    num_steps, num_streams = reward.shape
    ahead = jnp.arange(num_steps)[None] - jnp.arange(num_steps)[:, None]
    returns = jnp.where(ahead >= 0, DISCOUNT ** ahead.clip(0), 0.0) @ reward
    advantage = (returns - returns.mean(axis=1, keepdims=True)) * num_streams / (num_streams - 1)
    error = (action - hand_mean(params, position)) / jnp.exp(params["log_std"])
    log_prob = -jnp.sum(0.5 * error**2 + params["log_std"], axis=-1)
    return -jnp.mean(log_prob * advantage)


@jax.numpy_rank_promotion("allow")
def hand_update(
    key: jax.Array, state: tuple, *, num_tasks: int, num_steps: int
) -> tuple[tuple, jax.Array]:
    """A meta-update, and the mean reward after adaptation ``[]``."""
    params, optimizer_state = state
    goal_key, *noise_keys = jax.random.split(key, 3)
    goals = jax.random.uniform(goal_key, (num_tasks, 2), minval=-0.5, maxval=0.5)
    shape = num_tasks, num_steps, NUM_STREAMS, 2
    before, after = (jax.random.normal(key, shape) for key in noise_keys)

    def task_loss(params: dict, goal: jax.Array, before: jax.Array, after: jax.Array) -> tuple:
        gradient = jax.grad(hand_loss)(params, hand_rollout(params, before, goal))
        adapted = jax.tree.map(lambda x, g: x - STEP_SIZE * g, params, gradient)
        data = hand_rollout(adapted, after, goal)
        return hand_loss(adapted, data), jnp.mean(data[2])

    def loss(params: dict) -> tuple:
        losses, rewards = jax.vmap(task_loss, (None, 0, 0, 0))(params, goals, before, after)
        return jnp.mean(losses), jnp.mean(rewards)

    gradient, reward = jax.grad(loss, has_aux=True)(params)
    updates, optimizer_state = optax.adam(LEARNING_RATE).update(gradient, optimizer_state)
    return (optax.apply_updates(params, updates), optimizer_state), reward


def rl2_case(main: Main, size: int) -> Case:
    """RL² in two precisions."""
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=main.num_steps)

    def program(precision: Any) -> study.Program:
        config = rl2.Config(
            memory_size=16 if main.small else 128, precision=precision, unroll=main.unroll
        )
        algorithm = rl2.rl2(family, config)
        run = study.one(algorithm, 0)
        return bound(study.advancing(algorithm, family, num_tasks=size), run)

    names = {"float32": "full", "bfloat16": "bfloat16"}
    programs = {name: partial(program, precision) for name, precision in names.items()}
    return Case("rl2", size, size * main.num_steps, programs)


CASES = {"rollout": rollout_case, "maml": maml_case, "rl2": rl2_case}


def measured(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each program of a case."""
    programs = {name: make() for name, make in case.programs.items()}
    calls = {name: program.call for name, program in programs.items()}
    seconds = study.in_turns(calls, repeats)
    first, *others = (statistics.median(x) for x in seconds.values())
    for (name, program), ratio in zip(
        programs.items(), [1.0, *(x / first for x in others)], strict=True
    ):
        median = statistics.median(seconds[name])
        yield {
            "part": case.part,
            "size": case.size,
            "side": name,
            "env_steps": case.env_steps,
            "env_steps_per_second": case.env_steps / median,
            "steps_per_second": 1 / median,
            "seconds": seconds[name],
            "seconds_to_first": ratio,
            "compile_seconds": program.seconds,
            "temporary_bytes": program.call.func.memory_analysis().temp_size_in_bytes,
        }


COLUMNS = """
    what = {part} | size = {size} | by = {side} | time, s = {median:.4f} | from, to = {low:.4f}, {high:.4f}
    | M env steps/s = {millions:.3f} | time to the first's = {seconds_to_first:.2f}
    | memory, MB = {megabytes:.0f} | compiling, s = {compile_seconds:.1f}
"""


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the numbers of its line of the table."""
    seconds = row["seconds"]
    return row | {
        "median": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "millions": row["env_steps_per_second"] / 1e6,
        "megabytes": row["temporary_bytes"] / 1e6,
    }


def run(main: Main) -> None:
    began, rows, left_out = time.monotonic(), [], []
    sizes = SMALL if main.small else LARGE
    main.output.mkdir(parents=True, exist_ok=True)
    with open(main.output / "rows.jsonl", "w", encoding="utf-8") as file:
        for part in main.parts:
            for size in sizes[part]:
                if time.monotonic() - began > main.seconds:
                    left_out.append(f"{part}, {size}")
                    continue
                for row in measured(CASES[part](main, size), main.repeats):
                    row |= {"machine": reports.machine(), "at_seconds": time.monotonic() - began}
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    study.say(
                        f"{part}, {size}, {row['side']}: {row['env_steps_per_second']:.3g} env steps/s"
                    )
    if left_out:
        study.say(f"left out after {main.seconds} s: {'; '.join(left_out)}")
    table = study.table(COLUMNS, map(shown, rows))
    study.leave(main, table, csv=table, rows=rows, left_out=left_out)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
