"""Meta-gradient estimators on truncated lifetimes: each looks at a window of one learner's life.

An estimator sees the K updates of a window and no further, so its memory does not grow with a lifetime
(see `lifelong`). The estimators differentiate different things, and the truncation biases them differently:

* `policy_gradient` differentiates the updates, but not what is earned. It ignores the effect of a window
  on later windows;
* `evolution_strategy` differentiates nothing and has the same bias;
* `persistent_evolution_strategy` keeps its pairs of lives apart for a whole life. It is unbiased, and its
  variance grows with age.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import optax

from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import mean_over_streams, without_broken_streams
from jaxmeta.meta_updates import evolution
from jaxmeta.meta_updates.gradients import masked_mean, optimizer_step
from jaxmeta.networks.values import Value
from jaxmeta.rollouts import Setup, lifelong
from jaxmeta.rollouts.lifelong import Life
from jaxmeta.types import History, Params, Task, Trajectory


class Meta(Protocol):
    """The part of a learner's ``meta`` that estimators read: a NamedTuple with at least these fields."""

    @property
    def params(self) -> Params:
        """The parameters that are learned."""

    @property
    def hyper(self) -> Any:
        """The numbers of the estimator, which its constructor names."""

    def _replace(self, *, params: Params) -> Self: ...


class Window(NamedTuple):
    """The part of a life that a meta-update looks at."""

    setup: Setup
    """The learner in its environment."""
    lifespan: int
    """Updates of a life."""
    num_updates: int
    """Updates (K) in the window."""

    def birth(self, key: jax.Array, meta: Meta, task: Task) -> Life:
        """A newborn agent in ``task``."""
        return lifelong.birth(key, meta, task, setup=self.setup)

    def renewed(self, key: jax.Array, meta: Meta, life: Life, task: Task) -> Life:
        """``life``, or a newborn agent in ``task`` if ``life`` has reached its lifespan."""
        return lifelong.renewed(key, meta, life, task, setup=self.setup, lifespan=self.lifespan)


class Objective(NamedTuple):
    """The parts that judge the agents of a learner, beside the rewards that they earn."""

    log_prob: Callable[[Any, Trajectory], jax.Array]
    """``(agent, data [N, T]) -> [N, T]``, the log-probability of its actions."""
    charge: Callable[[Any, Any, Trajectory, jax.Array], jax.Array]
    """``(meta, agent, data [N, T], good [N]) -> []``, a cost that is added to the meta-objective."""
    critic: Value
    """A value of observations: the baseline of `policy_gradient`."""


class Member(NamedTuple):
    """An agent, and the state that its estimator keeps."""

    life: Life
    """One life, or a pair ``[2]`` of lives that stay apart."""
    critic: Any
    """The `Critic` of a policy gradient, else ()."""
    perturbation: Any
    """ξ, the sum of ε since birth, of pairs that stay apart, else ()."""


class Estimator(NamedTuple):
    """Functions of one member; callers ``vmap``. ``meta`` has the fields ``params``, which are learned, and ``hyper``."""

    birth: Callable[[jax.Array, Any, Task], Member]
    """``(key, meta, task) -> member``."""
    estimate: Callable[[jax.Array, Any, Member, Task], tuple[Params, dict[str, jax.Array], Member]]
    """``(key, meta, member, task) -> (gradient to descend, report, member)`` after one more window. A life that
    is over is followed by a newborn in ``task``."""
    env_steps: int
    """Steps of one estimate."""


MakeEstimator = Callable[[Window, Objective], Estimator]
"""A meta-gradient estimator as an object: `policy_gradient`, `evolution_strategy`, or one's own."""


class Critic(NamedTuple):
    """The baseline of a policy gradient: a value of an agent's observations."""

    params: Params
    """Parameters of the value."""
    optimizer: Any
    """The optimiser's state."""


def policy_gradient(window: Window, objective: Objective) -> Estimator:
    """Policy gradients of the agents after each update, through the window's updates.

    Oh et al. 2020, "Discovering reinforcement learning algorithms", eqs. 3 and 4. The last agent acts
    once more and its experience counts too; ``objective.charge`` is the charge of the last agent. The
    critic is a function of states that the learner never sees. It is fitted to the λ-returns of a round
    after it has served there as a baseline, so the baseline does not depend on the actions that it is
    subtracted for.

    The gradient is clipped to the norm ``max_grad_norm``: an agent at the edge of chaos must not outweigh
    all others. Reads ``discount``, ``gae_lambda``, ``max_grad_norm`` and ``critic_step_size`` (of Adam) of
    ``meta.hyper``.
    """
    parts = _PolicyGradient(window, objective)
    setup = window.setup
    steps = setup.env_steps * (window.num_updates + 1)
    return Estimator(parts.birth, parts.estimate, steps)


@dataclasses.dataclass(frozen=True)
class _PolicyGradient:
    """The functions of `policy_gradient`."""

    window: Window
    objective: Objective

    def birth(self, key: jax.Array, meta: Meta, task: Task) -> Member:
        life_key, critic_key = jax.random.split(key)
        life = self.window.birth(life_key, meta, task)
        return Member(life, self.new_critic(critic_key, meta), ())

    def estimate(
        self, key: jax.Array, meta: Meta, member: Member, task: Task
    ) -> tuple[Params, dict[str, jax.Array], Member]:
        renew_key, critic_key, live_key, show_key = jax.random.split(key, 4)
        life = self.window.renewed(renew_key, meta, member.life, task)
        critic = jax.tree.map(
            partial(jnp.where, life.age == 0), self.new_critic(critic_key, meta), member.critic
        )

        def loss(params: Params) -> tuple[jax.Array, tuple]:
            learned = meta._replace(params=params)
            lived, history = lifelong.live_and_show(
                (live_key, show_key),
                learned,
                life,
                setup=self.window.setup,
                num_updates=self.window.num_updates,
            )
            # The first agent came from outside; no derivative reaches it.
            value, judge, report = self.loss(
                learned, jax.tree.map(lambda x: x[1:], history), critic
            )
            return value, (lived, judge, report)

        (total, aux), gradient = jax.value_and_grad(loss, has_aux=True)(meta.params)
        life, judge, report = aux
        # The derivative of a mean of no streams is zero, although there is no such mean.
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(total), g, jnp.nan), gradient)
        return clipped(gradient, meta.hyper.max_grad_norm), report, Member(life, judge, ())

    def loss(
        self, meta: Meta, history: History, critic: Critic
    ) -> tuple[jax.Array, Critic, dict[str, jax.Array]]:
        """``(loss [], critic, report)`` of the agents after each update, with the experience of each, ``[K]``."""
        data, good = jax.vmap(without_broken_streams)(history.trajectories)
        critic, advantage = self.advantages(meta, critic, data, good)
        log_prob = jax.vmap(self.objective.log_prob)(history.agent, data)
        gain = mean_over_streams(log_prob * advantage, good)
        last = jax.tree.map(lambda x: x[-1], (history.agent, data, good))
        return self.objective.charge(meta, *last) - gain, critic, _report(data.reward, good)

    def new_critic(self, key: jax.Array, meta: Meta) -> Critic:
        params = self.objective.critic.init(key)
        return Critic(params, optax.adam(meta.hyper.critic_step_size).init(params))

    def advantages(
        self, meta: Meta, critic: Critic, data: Trajectory, good: jax.Array
    ) -> tuple[Critic, jax.Array]:
        """Advantages ``[K, N, T]``; each round's are by the critic that was fitted to the rounds before it."""
        value = self.objective.critic

        def round(critic: Critic, data_and_good: tuple) -> tuple[Critic, jax.Array]:
            data, good = data_and_good
            v, v_next = (value.apply(critic.params, x) for x in (data.timestep.obs, data.next_obs))
            advantage, target = jax.vmap(
                partial(advantages_and_targets, lambda_=meta.hyper.gae_lambda)
            )(data.reward, meta.hyper.discount * data.discount, v=v, v_next=v_next, last=data.last)
            return self.fitted(meta, critic, data.timestep.obs, good, target), advantage

        return jax.lax.scan(round, critic, (data, good))

    def fitted(
        self, meta: Meta, critic: Critic, obs: Any, good: jax.Array, target: jax.Array
    ) -> Critic:
        """The critic after a step on one round ``[N, T]``, of its streams that are ``good [N]``."""

        def loss(params: Params) -> jax.Array:
            v = self.objective.critic.apply(params, obs)
            return 0.5 * mean_over_streams((v - target) ** 2, good)

        optimizer = optax.adam(meta.hyper.critic_step_size)
        gradient = jax.grad(loss)(critic.params)
        return Critic(*optimizer_step(optimizer, gradient, critic.optimizer, critic.params))


def clipped(gradient: Any, max_norm: Any) -> Any:
    """``gradient`` with its norm cut to ``max_norm``; NaN where its norm is not finite."""
    norm = optax.tree.norm(gradient)
    shrink = jnp.minimum(1.0, max_norm / (norm + TINY))
    shrink = jnp.where(jnp.isfinite(norm), shrink, jnp.nan)
    return jax.tree.map(lambda x: shrink * x, gradient)


TINY = 1e-12
"""Lets the norm of a gradient of zeros be divided by."""


def evolution_strategy(window: Window, objective: Objective, *, ranked: bool = False) -> Estimator:
    """Antithetic pairs of perturbed parameters, which share their tasks and random numbers.

    Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning". A pair
    starts every window from the agent, which itself lives with the parameters that are not perturbed.
    Fitness is the mean reward of a step in the window, less ``objective.charge`` of its last agent. Reads
    ``noise_std`` of ``meta.hyper``.

    With ``ranked`` the better of a pair counts as 1/2 and the other as -1/2, the centred ranks of two: then every task counts
    alike, whatever its rewards are measured in. A meta-gradient is given ``functools.partial(evolution_strategy, ranked=True)``.
    """
    parts = _EvolutionStrategy(window, objective, ranked)

    def birth(key: jax.Array, meta: Meta, task: Task) -> Member:
        return Member(window.birth(key, meta, task), (), ())

    def estimate(
        key: jax.Array, meta: Meta, member: Member, task: Task
    ) -> tuple[Params, dict[str, jax.Array], Member]:
        renew_key, noise_key, pair_key, own_key = jax.random.split(key, 4)
        epsilon, pair = parts.pair(noise_key, meta)
        life = window.renewed(renew_key, meta, member.life, task)
        _, fitness, _ = jax.vmap(parts.live, (None, 0, None))(pair_key, pair, life)
        life, _, report = parts.live(own_key, meta, life)
        return parts.descent(meta, epsilon, fitness), report, Member(life, (), ())

    return Estimator(birth, estimate, 3 * parts.steps)


def persistent_evolution_strategy(
    window: Window, objective: Objective, *, ranked: bool = False
) -> Estimator:
    """An `evolution_strategy` whose pairs live apart from birth, with another perturbation in each window.

    Vicol, Metz & Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with
    persistent evolution strategies", algorithm 2. ``ranked`` is as in `evolution_strategy`; the estimate is then one of how often
    a window is the better one, and no longer one of the gradient of rewards.
    """
    parts = _EvolutionStrategy(window, objective, ranked)

    def birth(key: jax.Array, meta: Meta, task: Task) -> Member:
        life = window.birth(key, meta, task)
        return Member(_twice(life), (), jax.tree.map(jnp.zeros_like, meta.params))

    def estimate(
        key: jax.Array, meta: Meta, member: Member, task: Task
    ) -> tuple[Params, dict[str, jax.Array], Member]:
        renew_key, noise_key, pair_key, _ = jax.random.split(key, 4)
        epsilon, pair = parts.pair(noise_key, meta)
        lives = jax.vmap(lambda meta, life: window.renewed(renew_key, meta, life, task))(
            pair, member.life
        )
        newborn = lives.age[0] == 0
        xi = jax.tree.map(
            lambda xi, e: jnp.where(newborn, 0.0, xi) + e, member.perturbation, epsilon
        )
        lives, fitness, reports = jax.vmap(parts.live, (None, 0, 0))(pair_key, pair, lives)
        report = masked_mean(reports, jnp.ones(2, bool))
        return parts.descent(meta, xi, fitness), report, Member(lives, (), xi)

    return Estimator(birth, estimate, 2 * parts.steps)


@dataclasses.dataclass(frozen=True)
class _EvolutionStrategy:
    """The functions that both evolution strategies share."""

    window: Window
    objective: Objective
    ranked: bool

    @property
    def steps(self) -> int:
        """Steps of one life in a window."""
        return self.window.setup.env_steps * self.window.num_updates

    def pair(self, key: jax.Array, meta: Meta) -> tuple[Params, Meta]:
        """``(ε, meta [2])`` with the parameters moved by ε and by -ε."""
        epsilon = evolution.perturbation(key, meta.params, meta.hyper.noise_std)
        params = evolution.antithetic(meta.params, epsilon)
        return epsilon, _twice(meta)._replace(params=params)

    def live(self, key: jax.Array, meta: Meta, life: Life) -> tuple[Life, jax.Array, dict]:
        """``(life, fitness [], report)`` after the window."""
        life, history = lifelong.live(
            key, meta, life, setup=self.window.setup, num_updates=self.window.num_updates
        )
        data, good = jax.vmap(without_broken_streams)(history.trajectories)
        last = jax.tree.map(lambda x: x[-1], (history.agent, data, good))
        fitness = mean_over_streams(data.reward, good) - self.objective.charge(meta, *last)
        return life, fitness, _report(data.reward, good)

    def descent(self, meta: Meta, xi: Params, fitness: jax.Array) -> Params:
        """The gradient to descend, from the ``fitness [2]`` of a pair."""
        if self.ranked:
            fitness = jnp.where(jnp.all(jnp.isfinite(fitness)), centred_ranks(fitness), jnp.nan)
        ascent = evolution.gradient(xi, fitness, meta.hyper.noise_std)
        return jax.tree.map(jnp.negative, ascent)


def centred_ranks(fitness: jax.Array) -> jax.Array:
    """``fitness [2]`` of a pair as 1/2 of the better and -1/2 of the other; 0 where they are equal."""
    return 0.5 * jnp.sign(fitness - fitness[::-1])


def _report(reward: jax.Array, good: jax.Array) -> dict[str, jax.Array]:
    """Metrics of a window's rewards ``[K, N, T]`` over its good streams ``[K, N]``."""
    return {
        "reward/step": mean_over_streams(reward, good),
        "skipped_streams": jnp.sum(~good, dtype=jnp.int32),
    }


def _twice(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), tree)
