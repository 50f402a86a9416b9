"""Random finite MDPs: a new table of transitions and rewards per task.

Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", section 3.2:
10 states, 5 actions, episodes of 10 steps from the first state; transitions flat Dirichlet, mean
rewards N(1, 1), rewards N(mean, 1).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily

OUT_OF_DISTRIBUTION_CONCENTRATION = 0.1


@struct.dataclass
class TabularParams:
    """The task: the tables of an MDP."""

    transition: jax.Array
    """``[S, A, S]``, probabilities p(s' | s, a)."""
    reward: jax.Array
    """``[S, A]``, mean rewards."""
    initial: jax.Array
    """``[S]``, distribution of an episode's first state."""


@struct.dataclass
class TabularState:
    """The MDP's state and the steps taken."""

    state: jax.Array
    """``[]``, int32: the MDP's state."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Tabular(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    The state is observed one-hot, ``[S]``. An episode never terminates: it is cut off at the
    horizon.
    """

    num_states: int = 10
    """S."""
    num_actions: int = 5
    """A."""
    horizon: int = 10
    """Time limit of an episode, in steps."""
    reward_noise: float = 1.0
    """Standard deviation of a reward around its mean."""

    @property
    def default_params(self) -> TabularParams:
        shape = (self.num_states, self.num_actions)
        return TabularParams(
            transition=jnp.full((*shape, self.num_states), 1 / self.num_states),
            reward=jnp.zeros(shape),
            initial=_first_state(self.num_states),
        )

    def reset_env(self, key: jax.Array, params: TabularParams) -> tuple[jax.Array, Any]:
        return self._observed(_draw(key, params.initial), jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: TabularState, action: jax.Array, params: TabularParams
    ) -> tuple[jax.Array, TabularState, jax.Array, jax.Array, dict]:
        state_key, noise_key = jax.random.split(key)
        mean = params.reward[state.state, action]
        reward = mean + self.reward_noise * jax.random.normal(noise_key, dtype=mean.dtype)
        successor = _draw(state_key, params.transition[state.state, action])
        return *self._observed(successor, state.time + 1), reward, jnp.zeros((), bool), {}

    def _observed(self, state: jax.Array, time: jax.Array) -> tuple[jax.Array, TabularState]:
        return jax.nn.one_hot(state, self.num_states), TabularState(state=state, time=time)

    def is_truncated(self, state: TabularState, params: TabularParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Tabular"

    def action_space(self, params: TabularParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: TabularParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.num_states,), jnp.float32)


def optimal_return(task: TabularParams, *, horizon: int) -> jax.Array:
    """Expected return of an episode under the best policy that is told the task, ``[]``.

    Backward induction: ``V_t(s) = max_a R(s, a) + sum_s' p(s'|s, a) V_{t+1}(s')``. The policy
    depends on the time too, so it is no function of the observation.
    """

    def backup(_: int, v: jax.Array) -> jax.Array:
        return jnp.max(task.reward + task.transition @ v, axis=1)

    return task.initial @ jax.lax.fori_loop(0, horizon, backup, jnp.zeros_like(task.initial))


def state_values(task: TabularParams, policy: jax.Array, discount: jax.Array) -> jax.Array:
    """``V(s) = E sum_t γ^t r_t`` of ``policy [S, A]`` for ``discount`` γ < 1, ``[S]``.

    The values are of the task without its time limit, because the agent does not observe the time.
    The series of ``(I - γ P)^-1`` is summed by doubling: ``sum_{k<2n} A^k = (I + A^n) sum_{k<n}
    A^k``, 2^14 terms.
    """
    reward = jnp.sum(policy * task.reward, axis=1)
    power = discount * jnp.einsum("sa,sat->st", policy, task.transition)

    def double(_: int, carry: tuple) -> tuple:
        v, power = carry
        return v + power @ v, power @ power

    return jax.lax.fori_loop(0, 14, double, (reward, power))[0]


def tabular(
    *, num_states: int = 10, num_actions: int = 5, horizon: int = 10, reward_noise: float = 1.0
) -> TaskFamily:
    """Random MDPs, by default the tasks of RL²: flat-Dirichlet transitions for train and test.

    Out of distribution, transitions are Dirichlet with concentration 0.1, closer to deterministic
    ones. With 10 states the likeliest successor has a mean probability of 0.66; in training it has
    0.29. The support is all MDPs in every split, so the shift is in their probabilities. Rewards
    have the same distribution in every split.

    Args:
        num_states: S, at least 1.
        num_actions: A, at least 1.
        horizon: Time limit of an episode, in steps.
        reward_noise: Standard deviation of a reward around its mean, 0 or positive.
    """
    sizes = dict(num_states=num_states, num_actions=num_actions, horizon=horizon)
    for name, size in sizes.items():
        checks.at_least(name, size, 1)
    checks.between("reward_noise", reward_noise, 0, 1e6)

    def sampler(concentration: float) -> Callable[[jax.Array], TabularParams]:
        def sample(key: jax.Array) -> TabularParams:
            transition_key, reward_key = jax.random.split(key)
            shape = (num_states, num_actions)
            return TabularParams(
                transition=jax.random.dirichlet(
                    transition_key, jnp.full(num_states, concentration), shape
                ),
                reward=1.0 + jax.random.normal(reward_key, shape),
                initial=_first_state(num_states),
            )

        return sample

    return TaskFamily(
        name="tabular",
        env=Tabular(num_states, num_actions, horizon, reward_noise),
        horizon=horizon,
        train=sampler(1.0),
        test=sampler(1.0),
        out_of_distribution=sampler(OUT_OF_DISTRIBUTION_CONCENTRATION),
        optimal_return=functools.partial(optimal_return, horizon=horizon),
        mutate=mutate,
    )


def mutate(key: jax.Array, task: TabularParams) -> TabularParams:
    """The task with the transitions and the mean reward of one state and action drawn anew, as in training."""
    num_states, num_actions, _ = task.transition.shape
    place_key, transition_key, reward_key = jax.random.split(key, 3)
    place = jax.random.randint(place_key, (), 0, num_states * num_actions)
    s, a = place // num_actions, place % num_actions
    row = jax.random.dirichlet(transition_key, jnp.ones(num_states))
    return task.replace(  # type: ignore[attr-defined]
        transition=task.transition.at[s, a].set(row),
        reward=task.reward.at[s, a].set(1.0 + jax.random.normal(reward_key)),
    )


def latent_tabular(
    *,
    num_latents: int = 4,
    num_states: int = 20,
    num_actions: int = 5,
    horizon: int = 10,
    reward_noise: float = 1.0,
    structure_seed: int = 0,
) -> TaskFamily:
    """Random MDPs with shared structure, so that one state tells of another: a task is d numbers z.

    Mean rewards are ``1 + ψ(s)·z`` and transitions ``sum_i softmax(z)_i P_i(s'|s, a)``, with normal
    features ψ and d Dirichlet kernels P_i of concentration 0.1 that all tasks share (a contextual
    MDP: Hallak, Di Castro & Mannor 2015, "Contextual Markov decision processes"). z ~ N(0, I) for
    train and test, N(0, 4 I) out of distribution.

    Args:
        num_latents: d, at least 1.
        num_states: S, at least 1.
        num_actions: A, at least 1.
        horizon: Time limit of an episode, in steps.
        reward_noise: Standard deviation of a reward around its mean, 0 or positive.
        structure_seed: Seed of ψ and P, which all tasks of the family share.
    """
    checks.at_least("num_latents", num_latents, 1)
    checks.at_least("structure_seed", structure_seed, 0)
    family = tabular(
        num_states=num_states, num_actions=num_actions, horizon=horizon, reward_noise=reward_noise
    )
    feature_key, kernel_key = jax.random.split(jax.random.key(structure_seed))
    features = jax.random.normal(feature_key, (num_states, num_latents))
    concentration = jnp.full(num_states, 0.1)
    shape = (num_latents, num_states, num_actions)
    kernels = jax.random.dirichlet(kernel_key, concentration, shape)

    def sampler(scale: float) -> Callable[[jax.Array], TabularParams]:
        def sample(key: jax.Array) -> TabularParams:
            z = scale * jax.random.normal(key, (num_latents,))
            return TabularParams(
                transition=jnp.einsum("isat,i->sat", kernels, jax.nn.softmax(z)),
                reward=jnp.broadcast_to((1.0 + features @ z)[:, None], shape[1:]),
                initial=_first_state(num_states),
            )

        return sample

    return dataclasses.replace(
        family,
        name="latent_tabular",
        train=sampler(1.0),
        test=sampler(1.0),
        out_of_distribution=sampler(2.0),
        mutate=None,
    )


def _first_state(num_states: int) -> jax.Array:
    return jax.nn.one_hot(0, num_states)


def _draw(key: jax.Array, probabilities: jax.Array) -> jax.Array:
    """An index drawn with the given ``probabilities [S]``, int32 ``[]``; it takes one random number, not S."""
    cumulative = jnp.cumsum(probabilities)
    u = cumulative[-1] * jax.random.uniform(key, dtype=cumulative.dtype)
    return jnp.sum(cumulative[:-1] <= u, dtype=jnp.int32)
