"""The discounting chain: the first action chooses when a reward comes; later actions have no effect.

bsuite's experiment (Osband et al. 2020, "Behaviour suite for reinforcement learning") as in
gymnax's ``DiscountingChain-bsuite``: five chains pay after 1, 3, 10, 30 and 100 steps. Four pay 1
and one pays 1.1; the task is which one. An agent that discounts prefers the first chain, wherever
the better one is. So learning needs the right discount, and a meta-gradient of the discount with
the wrong value function leads away from it (Bonnet, Midgley & Laterre 2022, "Debiasing
meta-gradient reinforcement learning by learning the outer value function").
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

REWARD_STEPS = (1, 3, 10, 30, 100)


@struct.dataclass
class DiscountingChainParams:
    """The task: the rewards of the chains."""

    reward: jax.Array
    """``[5]``, reward of each chain."""


@struct.dataclass
class DiscountingChainState:
    """The chosen chain and the steps taken."""

    chain: jax.Array
    """``[]``, int32: the chosen chain; -1 before the first action."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class DiscountingChain(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Observations are ``[2]``: the chain (-1 before the first action) and the share of the horizon
    that has passed. Actions are the chains. Chain i pays at step ``REWARD_STEPS[i]``, if the
    episode is long enough. The horizon is part of the task and terminates the episode; the agent
    observes the time.
    """

    horizon: int = 100
    """Steps of an episode."""

    @property
    def default_params(self) -> DiscountingChainParams:
        return DiscountingChainParams(reward=jnp.ones(len(REWARD_STEPS)))

    def reset_env(self, key: jax.Array, params: DiscountingChainParams) -> tuple[jax.Array, Any]:
        return self._observed(jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32))

    def step_env(
        self,
        key: jax.Array,
        state: DiscountingChainState,
        action: jax.Array,
        params: DiscountingChainParams,
    ) -> tuple[jax.Array, DiscountingChainState, jax.Array, jax.Array, dict]:
        chain = jnp.where(state.time == 0, action, state.chain).astype(jnp.int32)
        time = state.time + 1
        reward = jnp.where(time == jnp.array(REWARD_STEPS)[chain], params.reward[chain], 0.0)
        return *self._observed(chain, time), reward, time >= self.horizon, {}

    def _observed(
        self, chain: jax.Array, time: jax.Array
    ) -> tuple[jax.Array, DiscountingChainState]:
        obs = jnp.stack([chain.astype(float), time / self.horizon])
        return obs, DiscountingChainState(chain=chain, time=time)

    def is_truncated(
        self, state: DiscountingChainState, params: DiscountingChainParams
    ) -> jax.Array:
        return jnp.zeros((), bool)

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "DiscountingChain"

    def action_space(self, params: DiscountingChainParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(len(REWARD_STEPS))

    def observation_space(self, params: DiscountingChainParams) -> spaces.Box:
        return spaces.Box(-1.0, len(REWARD_STEPS) - 1.0, (2,), jnp.float32)


def optimal_action(task: DiscountingChainParams, obs: jax.Array, *, horizon: int) -> jax.Array:
    """The chain that pays most, int32 ``[]``; after the first step all actions are equal."""
    return jnp.argmax(_paid(task, horizon)).astype(jnp.int32)


def optimal_return(task: DiscountingChainParams, *, horizon: int) -> jax.Array:
    """The reward of the best chain, ``[]``, undiscounted."""
    return jnp.max(_paid(task, horizon))


def _paid(task: DiscountingChainParams, horizon: int) -> jax.Array:
    """Rewards of the chains, 0 for a chain that pays after the horizon, ``[5]``."""
    return jnp.where(jnp.array(REWARD_STEPS) <= horizon, task.reward, 0.0)


def discounting_chain(*, horizon: int = 100, best_chain: int | None = None) -> TaskFamily:
    """Discounting chains: one of the five, drawn uniformly, pays 1.1 and the others pay 1, for train and test.

    There are only these five tasks. Out of distribution the better chain pays 1.2.

    Args:
        horizon: Steps of an episode, at least 1; a chain that would pay later pays nothing.
        best_chain: The chain that pays more, as for one ``mapping_seed`` of bsuite; None draws it.

    Raises:
        ValueError: ``best_chain`` names no chain, or a number is out of range.
    """
    checks.at_least("horizon", horizon, 1)
    num_chains = len(REWARD_STEPS)
    if best_chain is not None:
        checks.at_least("best_chain", best_chain, 0)
        if best_chain >= num_chains:
            raise ValueError(f"best_chain={best_chain} must be below {num_chains}, the chains")

    def sampler(bonus: float) -> Sampler:
        def sample(key: jax.Array) -> DiscountingChainParams:
            drawn = jax.random.randint(key, (), 0, num_chains)
            better = drawn if best_chain is None else best_chain
            return DiscountingChainParams(1.0 + bonus * jax.nn.one_hot(better, num_chains))

        return sample

    return TaskFamily(
        name="discounting_chain",
        env=DiscountingChain(horizon),
        horizon=horizon,
        train=sampler(0.1),
        test=sampler(0.1),
        out_of_distribution=sampler(0.2),
        optimal_action=functools.partial(optimal_action, horizon=horizon),
        optimal_return=functools.partial(optimal_return, horizon=horizon),
    )
