"""Posterior sampling for finite MDPs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.types import Learner, TimeStep, Trajectory


class Posterior(NamedTuple):
    """Sums over the transitions of an MDP, which determine the posterior."""

    transitions: jax.Array
    """``[S, A, S]``, number of each transition."""
    reward: jax.Array
    """``[S, A]``, total rewards."""


class Sampled(NamedTuple):
    """An agent of `psrl`: its posterior and the policy that it follows."""

    posterior: Posterior
    """The posterior after the episodes so far."""
    policy: jax.Array
    """``[H, S]``, int32: the optimal actions of an MDP drawn from the posterior."""


def psrl(
    *,
    num_states: int = 10,
    num_actions: int = 5,
    horizon: int = 10,
    reward_noise: float = 1.0,
    reward_prior: float = 0.0,
) -> Learner:
    """A posterior-sampling learner: in each episode it acts optimally for an MDP drawn from its posterior.

    Strens 2000, "A Bayesian framework for reinforcement learning"; Osband et al. 2013, "(More)
    efficient reinforcement learning via posterior sampling", algorithm 1. The prior is flat
    Dirichlet for transitions and N(``reward_prior``, 1) for mean rewards. There is one update after
    each episode, so E episodes are a lifetime of E - 1 updates of ``horizon`` steps in one stream.

    RL² reports 138.1 in 10 episodes and 408.8 in 25, which belong to a prior mean of 0. The mean of
    its tasks is 1. With a prior mean of 1 posterior sampling earns less, 133 and 403: the higher it
    rates unknown pairs, the more it explores them.

    Args:
        num_states: S, at least 1; the state is observed one-hot.
        num_actions: A, at least 1.
        horizon: H, steps of an episode, at least 1.
        reward_noise: Standard deviation of a reward around its mean, positive.
        reward_prior: Prior mean of a mean reward.
    """
    sizes = dict(num_states=num_states, num_actions=num_actions, horizon=horizon)
    for name, size in sizes.items():
        checks.at_least(name, size, 1)
    checks.between("reward_noise", reward_noise, 1e-6, 1e6)
    checks.between("reward_prior", reward_prior, -1e6, 1e6)

    def draw(key: jax.Array, posterior: Posterior) -> Sampled:
        transition_key, reward_key = jax.random.split(key)
        transition = jax.random.dirichlet(transition_key, 1 + posterior.transitions)
        precision = 1 + jnp.sum(posterior.transitions, axis=-1) / reward_noise**2
        mean = (reward_prior + posterior.reward / reward_noise**2) / precision
        reward = mean + jax.random.normal(reward_key, mean.shape) / jnp.sqrt(precision)

        def backup(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            q = reward + transition @ v
            return jnp.max(q, axis=1), jnp.argmax(q, axis=1).astype(jnp.int32)

        _, policy = jax.lax.scan(backup, jnp.zeros(num_states), length=horizon, reverse=True)
        return Sampled(posterior, policy)

    def init(key: jax.Array, meta: tuple) -> Sampled:
        shape = (num_states, num_actions)
        return draw(key, Posterior(jnp.zeros((*shape, num_states)), jnp.zeros(shape)))

    def act(
        key: jax.Array, meta: tuple, agent: Sampled, step: jax.Array, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        step = jnp.where(timestep.first, 0, step)
        action = agent.policy[step, jnp.argmax(timestep.obs)]
        return action, jnp.zeros_like(timestep.reward), step + 1

    def update(key: jax.Array, meta: tuple, agent: Sampled, trajectories: Trajectory) -> Sampled:
        state = jnp.argmax(trajectories.timestep.obs, axis=-1)
        successor = jnp.argmax(trajectories.next_obs, axis=-1)
        seen, action = agent.posterior, trajectories.action
        posterior = Posterior(
            transitions=seen.transitions.at[state, action, successor].add(1.0),
            reward=seen.reward.at[state, action].add(trajectories.reward),
        )
        return draw(key, posterior)

    return Learner(init=init, memory=lambda meta: jnp.zeros((), jnp.int32), act=act, update=update)
