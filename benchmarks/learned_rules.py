"""Published learned rules: do agents that follow them learn what the authors report?

    python benchmarks/learned_rules.py check --weights disco_103.npz
    python benchmarks/learned_rules.py catch --weights disco_103.npz --output runs/disco-catch

`check` compares the outputs of DiscoRL's meta-network on a fixed batch with recorded ones. `catch` follows the rule in Catch on
8 × 8, with the settings of the authors' notebook: 2 environments, 28 steps between updates, each on 64 of the last 1024 pieces.
An agent solves Catch when its mean return reaches 0.99: it catches 99.5 % of the balls. The weights belong to the authors' code and have their own
licence. They are no part of this project.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import rollouts, tasks
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.learners import disco
from jaxmeta.learners.disco import DiscoLearner, Hyper, Replay
from jaxmeta.learners.update_rules import Meta
from jaxmeta.networks import disco as networks
from jaxmeta.networks.disco import Experience

Positive = Annotated[float, study.within(1e-6, 1e3)]
Sizes = Annotated[tuple[int, ...], study.at_least(1)]


class Catch(study.Study):
    """DiscoRL in Catch on 8 × 8."""

    weights: Path | None = None  # Published weights; None draws random ones, as a control.
    updates: int = 1000  # Updates of an agent.
    every: int = 100  # Updates between two looks at an agent.
    num_seeds: int = 5  # Agents, one after the other.
    num_streams: int = 2  # Environments of an agent.
    num_steps: int = 28  # Steps of each between two updates.
    num_sampled: int = 64  # Pieces in an update.
    capacity: int = 1024  # Pieces that are kept.
    step_size: Positive = 0.01  # Of the agents' Adam.
    hidden_sizes: Sizes = (512, 512)  # Layers of the agents' torso.
    model_size: int = 128  # Units of their model of actions.
    episodes: int = 256  # Episodes of a look.
    seed: int = 0  # Of the first agent.


class Check(study.Study):
    """DiscoRL's meta-network on a fixed batch."""

    weights: Path | None = None  # Published weights, which are needed.


def live(args: Catch, meta: Meta, seed: int, programs: dict[str, Callable]) -> list[float]:
    """The share of balls that an agent catches at each look."""
    key = jax.random.key(seed)
    begin_key, live_key, look_key = jax.random.split(key, 3)
    carry, caught = programs["begin"](begin_key, meta), []
    for done in range(0, args.updates, args.every):
        keys = jax.random.split(jax.random.fold_in(live_key, done), args.every)
        began = time.perf_counter()
        carry = programs["live"](keys, meta, carry)
        share = programs["look"](jax.random.fold_in(look_key, done), meta, carry[0])
        caught.append(float(share))
        study.say(
            f"seed {seed}, update {done + args.every}: {caught[-1]:.1%} caught, "
            f"{(time.perf_counter() - began) / args.every:.2f} s an update"
        )
    return caught


def programs_of(args: Catch, parts: DiscoLearner) -> dict[str, Callable]:
    """The compiled programs of a life: its beginning, `Catch.every` updates, and a look."""
    family = parts.family
    setup = rollouts.Setup(parts.learner, family.env, args.num_streams, args.num_steps)
    episodes = rollouts.Setup(parts.learner, family.env, args.episodes, family.horizon)
    task = family.train(jax.random.key(0))

    def begin(key: jax.Array, meta: Meta) -> Any:
        agent, streams = rollouts.begin(key, meta, task, setup=setup)
        # No two arrays may share memory that is overwritten.
        return agent._replace(slow=jax.tree.map(jnp.copy, agent.slow)), streams

    def update(meta: Meta, carry: Any, key: jax.Array) -> tuple[Any, None]:
        agent, streams = carry
        act_key, update_key = jax.random.split(key)
        streams, data = rollouts.collect(act_key, meta, task, agent, streams, setup=setup)
        return (parts.learner.update(update_key, meta, agent, data), streams), None

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


def catch(args: Catch) -> None:
    if args.updates % args.every:
        raise ValueError(f"updates={args.updates} must be a multiple of every={args.every}")
    began = time.perf_counter()
    rule = disco.disco(args.weights)
    parts = disco.disco_learner(
        rule,
        tasks.make("catch", rows=8, columns=8),
        hidden_sizes=args.hidden_sizes,
        model_size=args.model_size,
        replay=Replay(args.num_steps, args.capacity, args.num_sampled),
    )
    meta = Meta(jax.jit(rule.init)(jax.random.key(0)), Hyper(step_size=args.step_size))
    programs, looks = programs_of(args, parts), range(args.every, args.updates + 1, args.every)
    curves = {}
    for seed in range(args.seed, args.seed + args.num_seeds):
        curves[seed] = live(args, meta, seed, programs)
    rows = [
        {"seed": str(seed)} | {str(x): f"{y:.1%}" for x, y in zip(looks, caught, strict=True)}
        for seed, caught in curves.items()
    ]
    mean = np.mean(list(curves.values()), axis=0)
    rows.append({"seed": "mean"} | {str(x): f"{y:.1%}" for x, y in zip(looks, mean, strict=True)})
    caught_at = {str(seed): caught for seed, caught in curves.items()}
    study.leave(args, rows, caught=caught_at, seconds=time.perf_counter() - began)


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


if __name__ == "__main__":
    study.main({Catch: catch, Check: check}, __doc__)
