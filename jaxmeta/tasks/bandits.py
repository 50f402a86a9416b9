"""Bandits: arms of unknown mean reward, pulled a fixed number of times.

Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", section 3.1:
independent Bernoulli arms, means uniform in [0, 1]. Wang et al. 2016, "Learning to reinforcement
learn", section 3.1: two Bernoulli arms whose means may depend on each other.

An episode holds all pulls of a task, so one episode is a whole trial. Observations carry no
information: an agent learns of the arms from its previous actions and rewards alone.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

KINDS = ("uniform", "easy", "medium", "hard", "independent")
WORSE_MEAN = {"easy": 0.1, "medium": 0.25, "hard": 0.4}
"""Mean of the worse of two arms whose means add up to 1."""


@struct.dataclass
class BanditParams:
    """The task: the mean rewards of the arms."""

    mean: jax.Array
    """``[A]``, mean reward of a pull."""


@struct.dataclass
class BanditState:
    """The number of pulls."""

    time: jax.Array
    """``[]``, int32: pulls so far."""


@dataclasses.dataclass(frozen=True)
class Bandit(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    The observation is always ``[1.0]``. An episode never terminates: it is cut off after
    ``num_pulls``.
    """

    num_arms: int = 5
    """A."""
    num_pulls: int = 10
    """Time limit of an episode, in pulls."""
    reward: str = "bernoulli"
    """``"bernoulli"`` is 1 with the arm's mean as its probability, else 0; ``"gaussian"`` is the
    arm's mean plus noise."""
    reward_noise: float = 1.0
    """Standard deviation of a Gaussian reward around its mean."""

    @property
    def default_params(self) -> BanditParams:
        return BanditParams(mean=jnp.full(self.num_arms, 0.5))

    def reset_env(self, key: jax.Array, params: BanditParams) -> tuple[jax.Array, Any]:
        return jnp.ones(1), BanditState(time=jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: BanditState, action: jax.Array, params: BanditParams
    ) -> tuple[jax.Array, BanditState, jax.Array, jax.Array, dict]:
        mean = params.mean[action]
        if self.reward == "bernoulli":
            reward = jax.random.bernoulli(key, mean).astype(mean.dtype)
        else:
            reward = mean + self.reward_noise * jax.random.normal(key, dtype=mean.dtype)
        return jnp.ones(1), BanditState(time=state.time + 1), reward, jnp.zeros((), bool), {}

    def is_truncated(self, state: BanditState, params: BanditParams) -> jax.Array:
        return state.time >= self.num_pulls

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.num_pulls

    @property
    def name(self) -> str:
        return "Bandit"

    def action_space(self, params: BanditParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_arms)

    def observation_space(self, params: BanditParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (1,), jnp.float32)


def optimal_action(task: BanditParams, obs: jax.Array) -> jax.Array:
    """The best arm, int32 ``[]``; the first of them where several are."""
    return jnp.argmax(task.mean).astype(jnp.int32)


def optimal_return(task: BanditParams, *, num_pulls: int) -> jax.Array:
    """Expected return of pulling the best arm ``num_pulls`` times, ``[]``."""
    return num_pulls * jnp.max(task.mean)


def bernoulli_bandit(*, num_arms: int = 5, num_pulls: int = 10) -> TaskFamily:
    """Independent Bernoulli arms, the tasks of RL²: means uniform in [0, 1] for train and test.

    Out of distribution, means are uniform in [0, 0.5]. To an agent that expects the means of
    training every arm looks poor, and it searches too long. The support of training is everything,
    so these means lie within it.

    Args:
        num_arms: A, at least 1.
        num_pulls: Time limit of an episode, in pulls.
    """
    env = Bandit(num_arms, num_pulls, "bernoulli")
    return _family("bernoulli_bandit", env, _uniform(num_arms, 1.0), _uniform(num_arms, 0.5))


def gaussian_bandit(
    *,
    num_arms: int = 5,
    num_pulls: int = 10,
    reward_noise: float = 1.0,
    means: Literal["normal", "uniform"] = "normal",
) -> TaskFamily:
    """Independent Gaussian arms: means N(0, 1) for train and test, rewards N(mean, reward_noise²).

    Out of distribution, means are N(2, 1). To an agent that expects the means of training every arm
    looks good, and it settles too soon. The support is everything in both cases. Lee et al. 2023,
    "Supervised pretraining can learn in-context reinforcement learning", draw means uniformly from
    [0, 1] with a reward noise of 0.3; then means are uniform in [0, 0.5] out of distribution.

    Args:
        num_arms: A, at least 1.
        num_pulls: Time limit of an episode, in pulls.
        reward_noise: Standard deviation of a reward around its mean, 0 or positive.
        means: How the means are drawn for train and test: ``"normal"``, N(0, 1), or ``"uniform"``,
            in [0, 1].
    """
    checks.between("reward_noise", reward_noise, 0, 1e6)
    checks.choice("means", means, ("normal", "uniform"))

    def sampler(centre: float) -> Sampler:
        return lambda key: BanditParams(mean=centre + jax.random.normal(key, (num_arms,)))

    env = Bandit(num_arms, num_pulls, "gaussian", reward_noise)
    if means == "uniform":
        return _family("gaussian_bandit", env, _uniform(num_arms, 1.0), _uniform(num_arms, 0.5))
    return _family("gaussian_bandit", env, sampler(0.0), sampler(2.0))


def dependent_bandit(
    *,
    kind: Literal["uniform", "easy", "medium", "hard", "independent"] = "uniform",
    num_pulls: int = 100,
) -> TaskFamily:
    """Two Bernoulli arms of Wang et al. 2016; their means add up to 1, except in the kind "independent".

    Out of distribution the kind is ``"hard"``, or ``"easy"`` if the training kind is ``"hard"``.

    Args:
        kind: How the means are drawn for train and test. ``"uniform"``: p and 1 - p with p uniform
            in [0, 1]. ``"easy"``, ``"medium"``, ``"hard"``: 0.1 and 0.9, 0.25 and 0.75, 0.4 and
            0.6, in either order. ``"independent"``: both uniform in [0, 1].
        num_pulls: Time limit of an episode, in pulls.
    """
    checks.choice("kind", kind, KINDS)
    shifted = "easy" if kind == "hard" else "hard"
    samplers = (functools.partial(_dependent_means, kind=name) for name in (kind, shifted))
    return _family("dependent_bandit", Bandit(2, num_pulls, "bernoulli"), *samplers)


def _uniform(num_arms: int, highest: float) -> Sampler:
    return lambda key: BanditParams(mean=jax.random.uniform(key, (num_arms,), maxval=highest))


def _dependent_means(key: jax.Array, *, kind: str) -> BanditParams:
    if kind == "independent":
        return BanditParams(mean=jax.random.uniform(key, (2,)))
    if kind == "uniform":
        first = jax.random.uniform(key)
        return BanditParams(mean=jnp.stack([first, 1 - first]))
    worse = WORSE_MEAN[kind]
    mean = jnp.array([worse, 1 - worse])
    return BanditParams(mean=jnp.where(jax.random.bernoulli(key), mean, mean[::-1]))


def _family(
    name: str,
    env: Bandit,
    sample: Sampler,
    sample_shifted: Sampler,
) -> TaskFamily:
    checks.at_least("num_arms", env.num_arms, 1)
    checks.at_least("num_pulls", env.num_pulls, 1)
    return TaskFamily(
        name=name,
        env=env,
        horizon=env.num_pulls,
        train=sample,
        test=sample,
        out_of_distribution=sample_shifted,
        optimal_action=optimal_action,
        optimal_return=functools.partial(optimal_return, num_pulls=env.num_pulls),
    )
