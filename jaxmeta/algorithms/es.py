"""Evolution strategies on the adapted return: the gradient-free reference.

Song et al. 2020, "ES-MAML: simple Hessian-free meta learning", algorithm 2: θ climbs the Gaussian
smoothing of what θ earns after adaptation. Neither the inner update nor its effect on the experience is
differentiated, so there is nothing to be biased; the price is a population of lifetimes in every task.
The strategy is OpenAI's (Salimans et al. 2017: antithetic perturbations, fitness by centred ranks) as
evosax implements it; all members live with the same tasks and random numbers.
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
from jaxmeta.learners.gradient import Meta, combine, partition
from jaxmeta.meta_updates.gradients import State, guarded_update, known_if, map_tasks, masked_mean
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Task


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of evolution strategies that are fixed when the program is compiled: sizes, counts and choices."""

    population_size: int = 32
    """Members, in antithetic pairs; each lives once in every task of the meta-batch, and so does θ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("population_size", self.population_size, 2)
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
    parts = learners.gradient_learner(family, config, policy=policy, first_order=True)

    def search_from(key: jax.Array, meta: Meta) -> tuple[Open_ES, Any]:
        """The strategy and its search from θ."""
        theta = partition(meta, config)
        # evosax compiles the methods of a strategy for that very object, so it holds nothing that is traced.
        with _as_evosax_adds(), jax.ensure_compile_time_eval():
            like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theta)
            strategy = Open_ES(config.population_size, like, optimizer=_GRADIENT)
        with _as_evosax_adds():
            search = strategy.init(key, theta, strategy.default_params)
        return strategy, search.replace(std=meta.hyper.noise_std)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        init_key, _ = jax.random.split(key)
        meta = parts.init(init_key, hyper)
        optimizer_state = optimizer(meta.hyper.learning_rate).init(partition(meta, config))
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        meta = state.meta
        ask_key, live_key, tell_key = jax.random.split(key, 3)
        strategy, search = search_from(jax.random.clone(key), meta)
        with _as_evosax_adds():
            population, search = strategy.ask(ask_key, search, strategy.default_params)
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        task_keys = jax.random.split(live_key, num_tasks)

        def returns(member: dict) -> dict[str, jax.Array]:
            """Returns of one member in every task, ``[M]`` each; all members have the same random numbers."""
            keys = jax.random.clone(task_keys)

            def lifetime(key_and_task: tuple) -> dict[str, jax.Array]:
                key, task = key_and_task
                return learners.gradient.report(
                    parts.live(key, combine(meta, member, config), task)
                )

            return map_tasks(lifetime, (keys, tasks), tasks_per_chunk=config.tasks_per_chunk)

        own = returns(partition(meta, config))  # what is reported is θ's, not its perturbations'
        earned = jax.lax.map(lambda member: returns(member)["return/after"], population)  # [P, M]
        # A task that breaks most members is left out; a member that breaks in another ranks last.
        good = jnp.mean(jnp.isfinite(earned), axis=0) >= 0.5
        good &= jnp.stack([jnp.isfinite(x) for x in own.values()]).all(axis=0)
        num_good = jnp.sum(good)

        def mean_of_good(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(good, x, 0.0)) / count(good, x)

        fitness = jax.vmap(mean_of_good)(earned)
        fitness = jnp.where(jnp.isfinite(fitness), fitness, -jnp.finfo(fitness.dtype).max)
        applied = num_good > 0
        with _as_evosax_adds():
            found, _ = strategy.tell(
                tell_key, population, -fitness, search, strategy.default_params
            )
        moved, optimizer_state = guarded_update(
            optimizer(meta.hyper.learning_rate),
            strategy.get_mean(found.replace(mean=found.opt_state)),
            state.optimizer,
            partition(meta, config),
            apply=applied,
        )
        metrics = known_if(applied, masked_mean(own, good))
        env_steps = (config.population_size + 1) * num_tasks * parts.env_steps
        metrics |= {
            "update_norm": optax.tree.norm(
                jax.tree.map(jnp.subtract, moved, partition(meta, config))
            ),
            "skipped_tasks": num_tasks - num_good,
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(env_steps, jnp.int32),
        }
        return State(
            combine(meta, moved, config),
            optimizer_state,
            state.num_updates + applied.astype(jnp.int32),
        ), metrics

    return MetaAlgorithm(init, step, parts.learner)


_GRADIENT = optax.GradientTransformation(
    jnp.zeros_like, lambda gradient, state, params: (jnp.zeros_like(gradient), gradient)
)
"""Moves nothing and keeps the gradient, as its state."""


@contextlib.contextmanager
def _as_evosax_adds() -> Iterator[None]:
    """With the promotions that evosax leaves to jax: it adds ``[D]`` to ``[P, D]``, and integers to floats."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
