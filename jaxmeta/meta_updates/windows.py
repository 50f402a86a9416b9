"""Estimates of how what all learners are born with should move, from a window of one learner's life.

Each looks at the K updates that a window holds and no further, so its memory does not grow with a lifetime
(see `lifelong`). They differ in what they differentiate and in what the truncation costs them:

* `policy_gradient` differentiates the updates, not what is earned; blind to what a window leads to later;
* `evolution_strategy` differentiates nothing; as blind, unless its pairs live apart for life, which makes
  it unbiased at the price of a variance that grows with age.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import rollouts
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import mean_over_streams, without_broken_streams
from jaxmeta.meta_updates import evolution
from jaxmeta.meta_updates.gradients import masked_mean, optimizer_step
from jaxmeta.networks.values import Value
from jaxmeta.rollouts import lifelong
from jaxmeta.rollouts.lifelong import Life
from jaxmeta.types import History, Learner, Params, Task, Trajectory


class Window(NamedTuple):
    """The learner and its environment, the length of a life, and the window that a meta-update sees."""

    learner: Learner
    env: Any
    lifespan: int
    """Updates of a life."""
    num_updates: int
    """Updates (K) in the window."""
    num_streams: int
    """Streams (N) of an agent."""
    num_steps: int
    """Steps (T) of each stream between updates."""
    unroll: int = 1


class Member(NamedTuple):
    """An agent, and what its estimator remembers of it."""

    life: Life
    """One life, or a pair ``[2]`` of lives that stay apart."""
    critic: Any
    """Of a policy gradient, else ()."""
    perturbation: Any
    """ξ, the sum of ε since birth, of pairs that live apart, else ()."""


class Estimator(NamedTuple):
    """Functions of one member; callers ``vmap``. ``meta`` has the fields ``params``, which are learned, and ``hyper``."""

    birth: Callable[[jax.Array, Any, Task], Member]
    """``(key, meta, task) -> member``."""
    estimate: Callable[[jax.Array, Any, Member, Task], tuple[Params, dict[str, jax.Array], Member]]
    """``(key, meta, member, task) -> (gradient to descend, report, member)`` after one more window, of a
    successor in ``task`` where a life is over."""
    env_steps: int
    """Steps of one estimate."""


class Critic(NamedTuple):
    """The baseline of a policy gradient: a value of an agent's observations."""

    params: Params
    optimizer: Any


def policy_gradient(
    window: Window,
    log_prob: Callable[[Any, Trajectory], jax.Array],
    charge: Callable[[Any, Any, Trajectory, jax.Array], jax.Array],
    value: Value,
) -> Estimator:
    """Policy gradients of the agents after each update, through the window's updates.

    Oh et al. 2020, "Discovering reinforcement learning algorithms", eqs. 3 and 4. The last agent acts
    once more, to be looked at too, and is what ``charge`` is for. The critic is a function of states
    that the learner never sees, fitted to each round's λ-returns after it has served there, so the baseline
    does not depend on the actions that it is subtracted for.

    Reads ``discount``, ``gae_lambda`` and ``critic_step_size`` (of Adam) of ``meta.hyper``.

    Args:
        window: What is looked at.
        log_prob: ``(agent, data [N, T]) -> [N, T]`` of its actions.
        charge: ``(meta, agent, data [N, T], good [N]) -> []``, a cost beside what is earned.
        value: The critic.
    """
    world: dict[str, Any] = dict(learner=window.learner, env=window.env)
    acting: dict[str, Any] = dict(num_steps=window.num_steps, unroll=window.unroll)

    def new_critic(key: jax.Array, meta: Any) -> Critic:
        params = value.init(key)
        return Critic(params, optax.adam(meta.hyper.critic_step_size).init(params))

    def birth(key: jax.Array, meta: Any, task: Task) -> Member:
        life_key, critic_key = jax.random.split(key)
        return Member(_birth(life_key, meta, task, window), new_critic(critic_key, meta), ())

    def advantages(meta: Any, critic: Critic, data: Trajectory) -> tuple[jax.Array, jax.Array]:
        """And λ-returns, both ``[N, T]``."""
        v, v_next = (value.apply(critic.params, x) for x in (data.timestep.obs, data.next_obs))
        return jax.vmap(partial(advantages_and_targets, lambda_=meta.hyper.gae_lambda))(
            data.reward, meta.hyper.discount * data.discount, v=v, v_next=v_next, last=data.last
        )

    def fitted(critic: Critic, obs: Any, good: jax.Array, target: jax.Array, meta: Any) -> Critic:
        """The critic after a step on one round ``[N, T]``, of its streams that are ``good [N]``."""

        def loss(params: Params) -> jax.Array:
            return 0.5 * mean_over_streams((value.apply(params, obs) - target) ** 2, good)

        optimizer = optax.adam(meta.hyper.critic_step_size)
        gradient = jax.grad(loss)(critic.params)
        return Critic(*optimizer_step(optimizer, gradient, critic.optimizer, critic.params))

    def judged(
        meta: Any, critic: Critic, data: Trajectory, good: jax.Array
    ) -> tuple[Critic, jax.Array]:
        """Advantages ``[K, N, T]``, each round's by the critic that was fitted to those before it."""

        def judge(critic: Critic, round: tuple) -> tuple[Critic, jax.Array]:
            data, good = round
            advantage, target = advantages(meta, critic, data)
            return fitted(critic, data.timestep.obs, good, target, meta), advantage

        return jax.lax.scan(judge, critic, (data, good))

    def estimate(
        key: jax.Array, meta: Any, member: Member, task: Task
    ) -> tuple[Params, dict[str, jax.Array], Member]:
        renew_key, critic_key, live_key, after_key = jax.random.split(key, 4)
        life = _renewed(renew_key, meta, member.life, task, window)
        critic = jax.tree.map(
            partial(jnp.where, life.age == 0), new_critic(critic_key, meta), member.critic
        )

        def loss(params: Params) -> tuple[jax.Array, tuple]:
            learned = meta._replace(params=params)
            lived, history = lifelong.live(
                live_key, learned, life, **world, **acting, num_updates=window.num_updates
            )
            streams, after = rollouts.experience(
                after_key, learned, life.task, lived.agent, lived.streams, **world, **acting
            )
            # The first agent came from outside; no derivative reaches it.
            looked_at = jax.tree.map(
                lambda rounds, last: jnp.concatenate([rounds[1:], last[None]]),
                history,
                History(lived.agent, after),
            )
            data, good = jax.vmap(without_broken_streams)(looked_at.trajectories)
            judge, advantage = judged(meta, critic, data, good)
            gain = mean_over_streams(jax.vmap(log_prob)(looked_at.agent, data) * advantage, good)
            lived = lived._replace(streams=streams)
            cost = charge(learned, lived.agent, *jax.tree.map(lambda x: x[-1], (data, good)))
            return cost - gain, (lived, judge, _report(data.reward, good))

        (total, aux), gradient = jax.value_and_grad(loss, has_aux=True)(meta.params)
        life, judge, report = aux
        # The derivative of a mean of no streams is zero, although there is no such mean.
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(total), g, jnp.nan), gradient)
        return gradient, report, Member(life, judge, ())

    steps = window.num_streams * window.num_steps * (window.num_updates + 1)
    return Estimator(birth, estimate, steps)


def evolution_strategy(
    window: Window, fitness: Callable[[Any, History, jax.Array], jax.Array], *, persistent: bool
) -> Estimator:
    """Antithetic pairs of perturbed parameters, which share their tasks and random numbers.

    A pair leaves the agent, which lives by what is not perturbed, at the start of every window; a
    ``persistent`` one lives apart from birth, with another perturbation in each window (Vicol, Metz &
    Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with persistent
    evolution strategies", algorithm 2). Reads ``noise_std`` of ``meta.hyper``.

    Args:
        window: What is looked at.
        fitness: ``(meta, history [K], good [K, N]) -> []`` of those streams of one window that are good.
        persistent: Whether pairs live apart.
    """

    def live(key: jax.Array, meta: Any, life: Life) -> tuple[Life, jax.Array, dict]:
        life, history = lifelong.live(
            key,
            meta,
            life,
            learner=window.learner,
            env=window.env,
            num_updates=window.num_updates,
            num_steps=window.num_steps,
            unroll=window.unroll,
        )
        data, good = jax.vmap(without_broken_streams)(history.trajectories)
        earned = fitness(meta, history._replace(trajectories=data), good)
        return life, earned, _report(data.reward, good)

    def birth(key: jax.Array, meta: Any, task: Task) -> Member:
        life = _birth(key, meta, task, window)
        if not persistent:
            return Member(life, (), ())
        return Member(_twice(life), (), jax.tree.map(jnp.zeros_like, meta.params))

    def estimate(
        key: jax.Array, meta: Any, member: Member, task: Task
    ) -> tuple[Params, dict[str, jax.Array], Member]:
        renew_key, noise_key, pair_key, own_key = jax.random.split(key, 4)
        epsilon = evolution.perturbation(noise_key, meta.params, meta.hyper.noise_std)
        pair = _twice(meta)._replace(params=evolution.antithetic(meta.params, epsilon))
        if persistent:
            lives = jax.vmap(lambda meta, life: _renewed(renew_key, meta, life, task, window))(
                pair, member.life
            )
            newborn = lives.age[0] == 0
            xi = jax.tree.map(
                lambda xi, e: jnp.where(newborn, 0.0, xi) + e, member.perturbation, epsilon
            )
            lives, earned, reports = jax.vmap(live, (None, 0, 0))(pair_key, pair, lives)
            report = masked_mean(reports, jnp.ones(2, bool))
            member = Member(lives, (), xi)
        else:
            life, xi = _renewed(renew_key, meta, member.life, task, window), epsilon
            _, earned, _ = jax.vmap(live, (None, 0, None))(pair_key, pair, life)
            life, _, report = live(own_key, meta, life)
            member = Member(life, (), ())
        ascent = evolution.gradient(xi, earned, meta.hyper.noise_std)
        return jax.tree.map(jnp.negative, ascent), report, member

    lives = 2 if persistent else 3
    steps = lives * window.num_streams * window.num_steps * window.num_updates
    return Estimator(birth, estimate, steps)


def _report(reward: jax.Array, good: jax.Array) -> dict[str, jax.Array]:
    """Metrics of a window's rewards ``[K, N, T]`` over its good streams ``[K, N]``."""
    return {
        "reward/step": mean_over_streams(reward, good),
        "skipped_streams": jnp.sum(~good, dtype=jnp.int32),
    }


def _birth(key: jax.Array, meta: Any, task: Task, window: Window) -> Life:
    return lifelong.birth(
        key,
        meta,
        task,
        learner=window.learner,
        env=window.env,
        num_streams=window.num_streams,
    )


def _renewed(key: jax.Array, meta: Any, life: Life, task: Task, window: Window) -> Life:
    return lifelong.renewed(
        key,
        meta,
        life,
        task,
        lifespan=window.lifespan,
        learner=window.learner,
        env=window.env,
    )


def _twice(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), tree)
