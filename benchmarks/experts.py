"""Searches for the experts of the legged bodies, which `jaxmeta.tasks.locomotion` ships.

    python benchmarks/experts.py half_cheetah_direction

An expert is told the task and is a mixture of linear policies (`locomotion.linear_action`). Its weights are
found by augmented random search, as of Mania et al. 2018, "Simple random search provides a competitive
approach to reinforcement learning": antithetic pairs of perturbed weights live one episode each, of the same
task from the same start, and a step goes along the mean perturbation, each weighted by the pair's difference
in return over those differences' standard deviation. Observations are normalised by their running mean and
standard deviation, which end up in the weights. All pairs count: the best of tasks would be the easiest.

Every few generations the weights are judged on training tasks of their own, always the same; the best
are left as FAMILY.npy in --output, and what was there is replaced.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, evolution, tasks, training
from jaxmeta.tasks import TaskFamily, locomotion

FAMILIES = (
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "ant_direction",
    "ant_goal",
    "walker_params",
)


@dataclasses.dataclass(frozen=True)
class Main:
    """A search for the expert of a family."""

    family: Annotated[str, tyro.conf.Positional]
    output: Path = locomotion.EXPERTS
    """Folder of the weights."""
    num_generations: int = 200
    """Steps of the search."""
    num_pairs: int = 64
    """Perturbations in a generation; each is added and taken away."""
    noise_std: float = 0.1
    """Standard deviation of a perturbation, of weights on normalised observations."""
    step_size: float = 0.3
    """Of the mean perturbation, each weighted by its standardised difference in return; falls linearly to zero."""
    horizon: int = 200
    """Length of an episode, in steps."""
    judge_every: int = 10
    """Generations from one judgement to the next."""
    num_tasks: int = 50
    """Tasks to judge by."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        checks.choice("family", self.family, FAMILIES)
        for name in ("num_generations", "num_pairs", "horizon", "judge_every", "num_tasks"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("noise_std", "step_size"):
            checks.between(name, getattr(self, name), 1e-6, 10)
        checks.at_least("seed", self.seed, 0)


class Search(NamedTuple):
    """Where the search stands."""

    weights: jax.Array  # [K, A, O + 1], on normalised observations
    mean: jax.Array  # [O], of what policies saw
    square: jax.Array  # [O], its mean square
    generation: jax.Array  # []


def folded(search: Search) -> jax.Array:
    """The weights on observations as they are."""
    std = jnp.sqrt(search.square - search.mean**2 + 1e-4)  # what never changes has a scale, too
    weights = search.weights[..., :-1] / std[None, None]
    return jnp.concatenate([weights, search.weights[..., -1:] - (weights @ search.mean)[..., None]], -1)


def episode(
    key: jax.Array, weights: jax.Array, task: Any, family: TaskFamily
) -> tuple[jax.Array, jax.Array]:
    """Return ``[]`` and, of what the policies saw, ``[3, O]``: sum, sum of squares and number.

    Unlike `rollout`, which resets at every step, it ends once.
    """
    env = family.env
    obs, state = env.reset_env(key, task)

    def step(carry: tuple, _: None) -> tuple:
        obs, state, alive = carry
        action = locomotion.linear_action(weights, task, obs, kind=env.kind)
        seen = env.kind.view(task, obs).obs
        obs, state, reward, terminated, _ = env.step_env(key, state, action, task)
        moments = jnp.stack([seen, seen**2, jnp.ones_like(seen)])
        return (obs, state, alive & ~terminated), (alive * reward, alive * moments)

    _, (rewards, moments) = jax.lax.scan(
        step, (obs, state, jnp.ones((), bool)), length=family.horizon
    )
    return rewards.sum(), moments.sum(0)


def step(search: Search, key: jax.Array, *, main: Main, family: TaskFamily) -> tuple[Search, Any]:
    """A generation: ``(search, mean return)``."""
    env = family.env

    def pair(key: jax.Array) -> tuple:
        noise_key, task_key, episode_key = jax.random.split(key, 3)
        task = family.train(task_key)
        noise = evolution.perturbation(noise_key, search.weights, main.noise_std)
        # A policy that the task leaves out would only be moved at random.
        mixture = env.kind.view(task, env.reset_env(episode_key, task)[0]).mixture
        noise = noise * (mixture != 0)[:, None, None]
        both = evolution.antithetic(search.weights, noise)
        fitness, moments = jax.vmap(
            lambda weights: episode(episode_key, folded(search._replace(weights=weights)), task, family)
        )(both)
        return noise, fitness, moments.sum(0)

    noise, fitness, moments = jax.vmap(pair)(jax.random.split(key, main.num_pairs))
    difference = fitness[:, 0] - fitness[:, 1]
    direction = jnp.tensordot(difference / (jnp.std(difference) + 1e-8), noise / main.noise_std, 1)
    total, squares, number = moments.sum(0)
    rate = 1 / (search.generation + 1)
    step_size = main.step_size * (1 - search.generation / main.num_generations)
    after = Search(
        search.weights + step_size / main.num_pairs * direction,
        search.mean + rate * (total / number - search.mean),
        search.square + rate * (squares / number - search.square),
        search.generation + 1,
    )
    return after, fitness.mean()


def main(main: Main) -> None:
    training.enable_compilation_cache()
    main.output.mkdir(parents=True, exist_ok=True)
    family = tasks.make(main.family, horizon=main.horizon)
    task = family.env.default_params
    obs, _ = family.env.reset_env(jax.random.key(0), task)
    view = family.env.kind.view(task, obs)
    num_policies, num_seen, num_actions = len(view.mixture), len(view.obs), family.action_space.shape[0]
    search = Search(
        jnp.zeros((num_policies, num_actions, num_seen + 1)),
        jnp.zeros(num_seen),
        jnp.ones(num_seen),
        jnp.zeros(()),
    )

    @jax.jit
    def advance(search: Search, keys: jax.Array) -> tuple:
        return jax.lax.scan(lambda s, key: step(s, key, main=main, family=family), search, keys)

    @jax.jit
    def judge(search: Search) -> jax.Array:
        key = jax.random.key(main.seed)
        drawn = tasks.sample_tasks(key, family, main.num_tasks, split="train")
        keys = jax.random.split(key, main.num_tasks)
        return jax.vmap(lambda key, task: episode(key, folded(search), task, family)[0])(keys, drawn)

    keys = jax.random.split(jax.random.key(main.seed + 1), main.num_generations)
    best, started = -np.inf, time.monotonic()
    for done in range(0, main.num_generations, main.judge_every):
        search, lived = advance(search, keys[done : done + main.judge_every])
        returns = np.asarray(judge(search))
        if returns.mean() > best:
            best = returns.mean()
            np.save(main.output / f"{main.family}.npy", np.asarray(folded(search), np.float32))
        print(
            f"{done + len(lived)} generations, {time.monotonic() - started:.0f} s: "
            f"{returns.mean():.4g} (worst {returns.min():.4g}; best so far {best:.4g})",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
