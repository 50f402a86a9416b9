"""Evolution strategies on the adapted return: the gradient-free reference.

Song et al. 2020, "ES-MAML: simple Hessian-free meta learning", algorithm 2: θ climbs the Gaussian
smoothing of the return after adaptation. Neither the inner update nor its effect on the experience is
differentiated, so no estimator of a derivative can be biased. The price is a population of lifetimes in
every task.
The strategy is OpenAI's (Salimans et al. 2017: antithetic perturbations, fitness by centred ranks) as
evosax implements it; all members live with the same tasks and random numbers.

Use it as the reference without any meta-gradient, or where the adapted return has none. It takes many more environment steps.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.es import Config, Hyper, es

family = tasks.make("navigation", horizon=10)
algorithm = es(family, Config(num_streams=4, population_size=4), Hyper(step_size=0.3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import Open_ES

from jaxmeta import checks, learners
from jaxmeta.estimators.streams import count
from jaxmeta.learners.gradient import (
    GradientLearner,
    Meta,
    combine,
    first_order_step,
    learned_part,
    partition,
)
from jaxmeta.meta_updates.gradients import (
    State,
    map_tasks,
    masked_mean,
    nan_unless,
)
from jaxmeta.meta_updates.outer_loop import Optimizer, descend
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import MetaAlgorithm, Task


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of evolution strategies that are fixed when the program is compiled: sizes, counts and choices."""

    population_size: int = 32
    """Members, in antithetic pairs; each lives once in every task of the meta-batch, and so does θ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("population_size", self.population_size, 2)
        checks.ignored(self, ("rematerialize",), "in ES, which differentiates no update")
        if self.step_sizes != "fixed":
            raise ValueError(
                f"step_sizes={self.step_sizes!r} must be 'fixed': perturbations of weights are too large "
                "for step sizes, which they would turn negative"
            )
        if self.population_size % 2:
            raise ValueError(
                f"population_size={self.population_size} must be even: members are pairs"
            )


class Hyper(NamedTuple):
    """Numbers of evolution strategies that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ of the inner steps."""
    gae_lambda: float = 0.95
    """λ of the inner steps' advantages."""
    step_size: float = 0.5
    """Inner step size α."""
    learning_rate: float = 2e-2
    """Step size of the outer optimiser."""
    noise_std: float = 5e-2
    """Standard deviation of the perturbations of θ."""


@checks.constructor()
def es(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """Evolution strategies on a family of tasks; arguments and errors as in `maml`."""
    parts = learners.gradient_learner(family, config, policy=policy, inner_update=first_order_step)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        init_key, _ = jax.random.split(key)
        meta = parts.init(init_key, hyper)
        optimizer_state = optimizer(meta.hyper.learning_rate).init(partition(meta, config))
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        key = quick(key)
        theta, hyper = partition(state.meta, config), state.meta.hyper
        ask_key, live_key, tell_key = jax.random.split(key, 3)
        search = Search.begin(jax.random.clone(key), theta, hyper.noise_std, config)
        population, search = search.ask(ask_key)
        task_keys = jax.random.split(live_key, jax.tree.leaves(tasks)[0].shape[0])

        def returns(theta: dict) -> dict[str, jax.Array]:
            keys = jax.random.clone(task_keys)  # all members have the same random numbers
            return adapted_returns(combine(state.meta, theta, config), keys, tasks, parts)

        own = returns(theta)  # reports are about θ, not about its perturbations
        earned = jax.lax.map(lambda member: returns(member)["return/after"], population)
        fitness, good = fitness_of(earned, own)
        applied = jnp.sum(good) > 0
        gradient = search.gradient(tell_key, population, fitness)
        transform = optimizer(hyper.learning_rate)
        after = descend(state, gradient, learned_part(config), transform, apply=applied)
        moved = partition(after.meta, config)
        members = config.population_size + 1
        metrics = nan_unless(applied, masked_mean(own, good)) | {
            "update_norm": optax.tree.norm(jax.tree.map(jnp.subtract, moved, theta)),
            "skipped_tasks": len(task_keys) - jnp.sum(good),
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(members * len(task_keys) * parts.env_steps, jnp.int32),
        }
        return after, metrics

    return MetaAlgorithm(init, step, parts.learner, parts.setup.collects(restart=True))


def adapted_returns(
    meta: Meta, keys: jax.Array, tasks: Task, parts: GradientLearner
) -> dict[str, jax.Array]:
    """The report of a lifetime from ``meta`` in every task, ``[M]`` each; ``keys [M]``."""

    def lifetime(key_and_task: tuple) -> dict[str, jax.Array]:
        key, task = key_and_task
        return learners.gradient.report(parts.live(key, meta, task))

    return map_tasks(lifetime, (keys, tasks), tasks_per_chunk=parts.config.tasks_per_chunk)


def fitness_of(earned: jax.Array, own: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The members' fitness ``[P]`` and the tasks that it is of, bool ``[M]``.

    A task is left out if half the members or more are broken in it, or if θ is; a member that is broken in
    another task ranks last.

    Args:
        earned: Returns of the members, ``[P, M]``.
        own: The report of θ, ``[M]`` each.
    """
    good = jnp.mean(jnp.isfinite(earned), axis=0) >= 0.5
    good &= jnp.stack([jnp.isfinite(x) for x in own.values()]).all(axis=0)

    def mean_of_good(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(good, x, 0.0)) / count(good, x)

    fitness = jax.vmap(mean_of_good)(earned)
    worst = -jnp.finfo(fitness.dtype).max
    return jnp.where(jnp.isfinite(fitness), fitness, worst), good


class Search(NamedTuple):
    """evosax's strategy and its state."""

    strategy: Open_ES
    """evosax's strategy."""
    state: Any
    """The strategy's state: mean and step size."""

    @classmethod
    def begin(cls, key: jax.Array, theta: dict, noise_std: jax.Array, config: Config) -> "Search":
        """A search from θ, with perturbations of standard deviation ``noise_std []``."""
        # evosax compiles a strategy's methods for that very object, so it must hold nothing traced.
        with _as_evosax_adds(), jax.ensure_compile_time_eval():
            like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theta)
            strategy = Open_ES(config.population_size, like, optimizer=_GRADIENT)
        with _as_evosax_adds():
            state = strategy.init(key, theta, strategy.default_params)
        return cls(strategy, state.replace(std=noise_std))

    def ask(self, key: jax.Array) -> tuple[dict, "Search"]:
        """A population, a tree like θ with a leading ``[P]``, and the search that knows it."""
        with _as_evosax_adds():
            population, state = self.strategy.ask(key, self.state, self.strategy.default_params)
        return population, self._replace(state=state)

    def gradient(self, key: jax.Array, population: dict, fitness: jax.Array) -> dict:
        """The direction that lowers the fitness ``[P]`` of a population, a tree like θ."""
        with _as_evosax_adds():
            found, _ = self.strategy.tell(
                key, population, -fitness, self.state, self.strategy.default_params
            )
        return self.strategy.get_mean(found.replace(mean=found.opt_state))


_GRADIENT = optax.GradientTransformation(
    jnp.zeros_like, lambda gradient, state, params: (jnp.zeros_like(gradient), gradient)
)
"""Moves nothing and keeps the gradient as its state."""


@contextlib.contextmanager
def _as_evosax_adds() -> Iterator[None]:
    """Allow the promotions that evosax relies on: it adds ``[D]`` to ``[P, D]``, and integers to floats."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
