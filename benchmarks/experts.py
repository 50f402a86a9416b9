"""Searches for the experts of the legged bodies, which `jaxmeta.tasks.locomotion` ships.

    python benchmarks/experts.py half_cheetah_direction  # likewise half_cheetah_velocity and walker_params
    python benchmarks/experts.py ant_goal --horizon 100 --step-size 0.2
    python benchmarks/experts.py ant_direction --horizon 100 --step-size 0.1 --noise-std 0.03 --num-generations 240 \
        --start jaxmeta/tasks/experts/ant_goal.npy --start-scale 0.2

An expert is told the task and is a mixture of linear policies (`locomotion.linear_action`). Its weights are
found by augmented random search, as of Mania et al. 2018, "Simple random search provides a competitive
approach to reinforcement learning": antithetic pairs of perturbed weights live one episode each, of the same
task from the same start, and a step goes along the mean perturbation, each weighted by the pair's difference
in return over those differences' standard deviation. Observations are normalised by their running mean and
standard deviation, which end up in the weights. All pairs count: tasks differ in what can be earned, and the
best pairs would be those of the easiest. From zero the search does not make the ant run, for standing still earns more
than stumbling: it begins from the ant that goes to a goal, at a fifth of its torques.

Every few generations the weights are judged on training tasks of their own, always the same; the best
are left as FAMILY.npy in --output, and what was there is replaced.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import study
import tyro

from jaxmeta import tasks
from jaxmeta.meta_updates import evolution
from jaxmeta.tasks import TaskFamily, locomotion

FAMILIES = (
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "ant_direction",
    "ant_goal",
    "walker_params",
)
Positive = Annotated[float, study.within(1e-6, 10)]


class Main(study.Study, kw_only=True):
    """A search for the expert of a family."""

    output: Annotated[Path, tyro.conf.arg(help="Folder of the weights.")] = locomotion.EXPERTS
    family: Annotated[str, tyro.conf.Positional, study.known(FAMILIES)]
    start: Path | None = None
    """File of weights to begin from, for `ant_direction` those of `ant_goal`; None begins with zeros."""
    start_scale: Positive = 1.0  # Factor of these weights.
    num_generations: int = 100  # Steps of the search.
    num_pairs: int = 64  # Perturbations in a generation; each is added and taken away.
    noise_std: Positive = 0.1
    """Standard deviation of a perturbation, of weights on normalised observations."""
    step_size: Positive = 0.3
    """Of the mean perturbation, each weighted by its standardised difference in return; falls linearly to zero."""
    horizon: int = 200  # Length of an episode, in steps.
    judge_every: int = 10  # Generations from one judgement to the next.
    num_tasks: int = 50  # Tasks to judge by.
    seed: int = 0  # Of everything random.


class Search(NamedTuple):
    """The state of a search."""

    weights: jax.Array  # [K, A, O + 1], on normalised observations
    mean: jax.Array  # [O], of what policies saw
    square: jax.Array  # [O], its mean square
    generation: jax.Array  # []


def std(search: Search) -> jax.Array:
    """The standard deviations of observations, ``[O]``; none is zero."""
    return jnp.sqrt(search.square - search.mean**2 + 1e-4)


def folded(search: Search) -> jax.Array:
    """The weights on observations as they are."""
    weights = search.weights[..., :-1] / std(search)[None, None]
    return jnp.concatenate(
        [weights, search.weights[..., -1:] - (weights @ search.mean)[..., None]], -1
    )


def unfolded(weights: jax.Array, lived: "Episode") -> Search:
    """A search that begins from weights on observations as they are, by episodes ``[M]`` of theirs."""
    total, squares, number = lived.moments.sum(0)
    search = Search(weights, total / number, squares / number, jnp.zeros(()))
    shift = weights[..., -1:] + (weights[..., :-1] @ search.mean)[..., None]
    scaled = weights[..., :-1] * std(search)[None, None]
    return search._replace(weights=jnp.concatenate([scaled, shift], -1))


class Episode(NamedTuple):
    """The results of an episode."""

    value: jax.Array  # [], its return
    moments: jax.Array  # [3, O], of what policies saw: sum, sum of squares and number
    used: jax.Array  # [K], bool, the policies that were mixed in at all


def episode(key: jax.Array, weights: jax.Array, task: Any, *, family: TaskFamily) -> Episode:
    """One episode of the weights ``[K, A, O + 1]``; unlike `rollout`, which resets at every step, it ends once."""
    env = family.env
    obs, state = env.reset_env(key, task)

    def step(carry: tuple, _: None) -> tuple:
        obs, state, alive = carry
        view = env.kind.view(task, obs)
        action = locomotion.linear_action(weights, task, obs, kind=env.kind)
        obs, state, reward, terminated, _ = env.step_env(key, state, action, task)
        moments = jnp.stack([view.obs, view.obs**2, jnp.ones_like(view.obs)])
        seen = Episode(alive * reward, alive * moments, alive & (view.mixture != 0))
        return (obs, state, alive & ~terminated), seen

    _, seen = jax.lax.scan(step, (obs, state, jnp.ones((), bool)), length=family.horizon)
    return Episode(seen.value.sum(), seen.moments.sum(0), seen.used.any(0))


def generation(search: Search, key: jax.Array, *, main: Main, family: TaskFamily) -> Search:
    """The search after one more step."""
    progress = search.generation / main.num_generations

    def pair(key: jax.Array) -> tuple[jax.Array, Episode]:
        noise_key, task_key, episode_key = jax.random.split(key, 3)
        task = family.train(task_key)
        noise = evolution.perturbation(noise_key, search.weights, main.noise_std)
        both = evolution.antithetic(search.weights, noise)
        live = partial(episode, episode_key, task=task, family=family)
        lived = jax.vmap(lambda weights: live(folded(search._replace(weights=weights))))(both)
        # Of policies that were left out the return says nothing.
        return noise * lived.used.any(0)[:, None, None], lived

    noise, lived = jax.vmap(pair)(jax.random.split(key, main.num_pairs))
    difference = lived.value[:, 0] - lived.value[:, 1]
    weight = difference / (jnp.std(difference) + 1e-8)
    direction = jnp.tensordot(weight, noise / main.noise_std, 1) / main.num_pairs
    total, squares, number = lived.moments.sum((0, 1))
    rate = 1 / (search.generation + 1)
    return Search(
        search.weights + main.step_size * (1 - progress) * direction,
        search.mean + rate * (total / number - search.mean),
        search.square + rate * (squares / number - search.square),
        search.generation + 1,
    )


def first(family: TaskFamily, start: Path | None, scale: float = 1.0) -> np.ndarray:
    """The weights to begin from, ``[K, A, O + 1]``, ``scale`` times those in the file ``start``."""
    task = family.env.default_params
    obs, _ = family.env.reset_env(jax.random.key(0), task)
    view = family.env.kind.view(task, obs)
    shape = len(view.mixture), *family.action_space.shape, len(view.obs) + 1
    if start is None:
        return np.zeros(shape, np.float32)
    weights = scale * np.load(start)
    if family.env.kind is locomotion.ANT_DIRECTION and len(weights) == 2:
        weights = far_from_goal(weights)
    if weights.shape != shape:
        raise ValueError(f"start={start} has weights of shape {weights.shape}, not {shape}")
    return weights


def far_from_goal(weights: np.ndarray) -> np.ndarray:
    """Weights ``[1, A, O + 1]`` of the ant that goes to a goal, with that 1 metre away along x."""
    go = weights[0]
    return np.concatenate([go[:, 2:-1], go[:, -1:] + go[:, :1]], axis=1)[None]


def run(main: Main) -> None:
    main.output.mkdir(parents=True, exist_ok=True)
    family = tasks.make(main.family, horizon=main.horizon)
    search_key, task_key, episode_key = jax.random.split(jax.random.key(main.seed), 3)

    @jax.jit
    def advance(search: Search, keys: jax.Array) -> Search:
        def one(search: Search, key: jax.Array) -> tuple[Search, None]:
            return generation(search, key, main=main, family=family), None

        return jax.lax.scan(one, search, keys)[0]

    @jax.jit
    def judge(weights: jax.Array) -> Episode:
        drawn = tasks.sample_tasks(task_key, family, main.num_tasks, split="train")
        keys = jax.random.split(episode_key, main.num_tasks)
        return jax.vmap(lambda key, task: episode(key, weights, task, family=family))(keys, drawn)

    weights = jnp.asarray(first(family, main.start, main.start_scale))
    search = unfolded(weights, judge(weights))
    keys = jax.random.split(search_key, main.num_generations)
    best, started = -np.inf, time.monotonic()
    for done in range(0, main.num_generations, main.judge_every):
        search = advance(search, keys[done : done + main.judge_every])
        weights = folded(search)
        returns = np.asarray(judge(weights).value)
        if returns.mean() > best:
            best = returns.mean()
            np.save(main.output / f"{main.family}.npy", np.asarray(weights, np.float32))
        study.say(
            f"{int(search.generation)} generations, {time.monotonic() - started:.0f} s: "
            f"{returns.mean():.4g} (worst {returns.min():.4g}; best so far {best:.4g})"
        )


if __name__ == "__main__":
    study.main({Main: run}, __doc__, new=False)
