"""Extractive summaries: pick k of a document's n sentences; each task has its own weights of topics.

Lin & Bilmes 2011, "A class of submodular functions for document summarization": a summary earns the
weights of the topics that it covers, each topic once. The best summary solves a maximum coverage
problem. The greedy policy, which picks the sentence that adds most, is not optimal but earns at
least 1 - 1/e of the optimum: Nemhauser, Wolsey & Fisher 1978, "An analysis of approximations for
maximizing submodular set functions".
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

MENTION_PROBABILITY = 0.15
"""Probability of each topic in each sentence; a sentence without a topic gets one."""

CONCENTRATION = 0.5
OUT_OF_DISTRIBUTION_CONCENTRATION = 10.0

MOST_SUBSETS = 10_000
"""The optimum is computed if there are at most this many sets of sentences."""

TOPICS = ("politics", "economy", "science", "sport", "art", "weather", "health", "travel")


@struct.dataclass
class SummarisationParams:
    """The task: the weights of the topics."""

    weight: jax.Array
    """``[m]``, weights of the topics; they sum to 1."""


@struct.dataclass
class SummarisationState:
    """The document and the picked sentences."""

    mentions: jax.Array
    """``[n, m]``, bool: the topics that each sentence mentions."""
    picked: jax.Array
    """``[n]``, bool: the picked sentences."""
    time: jax.Array
    """``[]``, int32: picks so far."""


class Seen(NamedTuple):
    """The parts of an observation; all entries but ``left`` are 0 or 1."""

    mentions: jax.Array
    """``[n, m]``, the topics that each sentence mentions."""
    picked: jax.Array
    """``[n]``, the picked sentences."""
    covered: jax.Array
    """``[m]``, topics of the picked sentences."""
    left: jax.Array
    """``[]``, the share of picks that remain."""


@dataclasses.dataclass(frozen=True)
class Summarisation(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    A document is drawn at the start of an episode. The observation is `Seen` as one vector ``[n * m
    + n + m + 1]``. Actions are the sentences. A pick earns the weights of the topics that no
    earlier pick has covered; a second pick of a sentence earns nothing. An episode never
    terminates: it is cut off after ``horizon`` picks.
    """

    num_sentences: int = 8
    """n."""
    num_topics: int = 6
    """m."""
    horizon: int = 3
    """k, picks in an episode."""

    @property
    def default_params(self) -> SummarisationParams:
        return SummarisationParams(weight=jnp.full(self.num_topics, 1 / self.num_topics))

    def reset_env(self, key: jax.Array, params: SummarisationParams) -> tuple[jax.Array, Any]:
        chance = jax.random.uniform(key, (self.num_sentences, self.num_topics))
        least = jnp.min(chance, axis=1, keepdims=True)
        state = SummarisationState(
            mentions=chance <= jnp.maximum(least, MENTION_PROBABILITY),
            picked=jnp.zeros(self.num_sentences, bool),
            time=jnp.zeros((), jnp.int32),
        )
        return self._observed(state), state

    def step_env(
        self,
        key: jax.Array,
        state: SummarisationState,
        action: jax.Array,
        params: SummarisationParams,
    ) -> tuple[jax.Array, SummarisationState, jax.Array, jax.Array, dict]:
        new = state.mentions[action] & ~_covered(state)
        state = SummarisationState(
            mentions=state.mentions,
            picked=state.picked.at[action].set(True),
            time=state.time + 1,
        )
        reward = jnp.sum(jnp.where(new, params.weight, 0.0))
        return self._observed(state), state, reward, jnp.zeros((), bool), {}

    def _observed(self, state: SummarisationState) -> jax.Array:
        left = 1.0 - state.time / self.horizon
        seen = Seen(state.mentions, state.picked, _covered(state), left)
        return jnp.concatenate([jnp.ravel(jnp.asarray(part, float)) for part in seen])

    def seen(self, obs: jax.Array) -> Seen:
        """The parts of an observation."""
        n, m = self.num_sentences, self.num_topics
        mentions, picked, covered, left = jnp.split(obs, [n * m, n * m + n, n * m + n + m])
        return Seen(mentions.reshape(n, m), picked, covered, left[0])

    def is_truncated(self, state: SummarisationState, params: SummarisationParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Summarisation"

    def action_space(self, params: SummarisationParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_sentences)

    def observation_space(self, params: SummarisationParams) -> spaces.Box:
        n, m = self.num_sentences, self.num_topics
        return spaces.Box(0.0, 1.0, (n * m + n + m + 1,), jnp.float32)


def _covered(state: SummarisationState) -> jax.Array:
    """Topics of the picked sentences, bool ``[m]``."""
    return jnp.any(state.mentions & state.picked[:, None], axis=0)


def optimal_action(task: SummarisationParams, obs: jax.Array, *, env: Summarisation) -> jax.Array:
    """The first sentence of the best set of sentences that may still be picked, int32 ``[]``.

    The best set is found by enumeration of all sets of up to k sentences. The order of picks does
    not change their total reward.
    """
    seen = env.seen(obs)
    subsets = jnp.asarray(_subsets(env.num_sentences, env.horizon))
    covered = (subsets @ seen.mentions + seen.covered[None]) > 0
    worth = jnp.sum(jnp.where(covered, task.weight[None], 0.0), axis=1)
    in_time = jnp.sum(subsets, axis=1) <= jnp.round(seen.left * env.horizon)
    best = subsets[jnp.argmax(jnp.where(in_time, worth, -1.0))]
    return jnp.argmax(best).astype(jnp.int32)


def features(obs: jax.Array, *, env: Summarisation) -> jax.Array:
    """``φ(s, a)``, ``[n, m]``: the topics that sentence a would newly cover.

    A sentence adds ``φ(s, a)·weight``. So a softmax-linear policy of these features, the family's
    ``action_features``, only needs to learn the task's weights.
    """
    seen = env.seen(obs)
    return seen.mentions * (1.0 - seen.covered)[None]


def greedy_action(task: SummarisationParams, obs: jax.Array, *, env: Summarisation) -> jax.Array:
    """The sentence that adds most, int32 ``[]``; this greedy choice is not optimal.

    With two picks, equal weights and sentences on topics {1, 2, 3, 4}, {1, 2, 5} and {3, 4, 6} the
    greedy policy takes the first sentence and covers five topics. The other two cover all six.
    """
    return jnp.argmax(features(obs, env=env) @ task.weight).astype(jnp.int32)


def text(obs: jax.Array, *, env: Summarisation) -> str:
    """The document of an observation (of the space's shape), a line for each sentence with its topics; picked sentences have a star.

    Topics have the names in `TOPICS`, and numbers after that.
    """
    seen = jax.tree.map(np.asarray, env.seen(obs))
    names = [*TOPICS, *(f"topic {i}" for i in range(len(TOPICS), env.num_topics))]
    lines = [
        f"{'*' if picked else ' '} {i}: {', '.join(names[topic] for topic in np.flatnonzero(mentions))}"
        for i, (mentions, picked) in enumerate(zip(seen.mentions, seen.picked, strict=True))
    ]
    return "\n".join(lines)


@functools.cache
def _subsets(num_sentences: int, most: int) -> np.ndarray:
    """All sets of up to ``most`` sentences, small ones first, as rows of 0 and 1: float ``[S, n]``."""
    sets = [x for k in range(most + 1) for x in itertools.combinations(range(num_sentences), k)]
    rows = np.zeros((len(sets), num_sentences))
    for row, chosen in zip(rows, sets, strict=True):
        row[list(chosen)] = 1.0
    return rows


def summarisation(*, num_sentences: int = 8, num_topics: int = 6, horizon: int = 3) -> TaskFamily:
    """Extractive summaries: the weights of topics are drawn, sparse Dirichlet for train and test.

    The concentration is 0.5 for train and test, and 10 out of distribution, where all topics have
    similar weights: with six topics the largest weight is 0.24 on average, and 0.50 in training.
    The support is all weights in both cases.

    Args:
        num_sentences: n, at least 1.
        num_topics: m, at least 1.
        horizon: k, picks in an episode; at most ``num_sentences``. The optimum is known only if
            there are at most `MOST_SUBSETS` sets of up to k sentences.

    Raises:
        ValueError: ``horizon`` exceeds ``num_sentences``, or a number is out of range.
    """
    sizes = dict(num_sentences=num_sentences, num_topics=num_topics, horizon=horizon)
    for name, size in sizes.items():
        checks.at_least(name, size, 1)
    if horizon > num_sentences:
        raise ValueError(f"horizon={horizon} must be at most num_sentences={num_sentences}")
    env = Summarisation(num_sentences, num_topics, horizon)
    num_subsets = sum(math.comb(num_sentences, k) for k in range(horizon + 1))

    def sampler(concentration: float) -> Sampler:
        def sample(key: jax.Array) -> SummarisationParams:
            return SummarisationParams(
                weight=jax.random.dirichlet(key, jnp.full(num_topics, concentration))
            )

        return sample

    return TaskFamily(
        name="summarisation",
        env=env,
        horizon=horizon,
        train=sampler(CONCENTRATION),
        test=sampler(CONCENTRATION),
        out_of_distribution=sampler(OUT_OF_DISTRIBUTION_CONCENTRATION),
        optimal_action=functools.partial(optimal_action, env=env)
        if num_subsets <= MOST_SUBSETS
        else None,
        expert_action=functools.partial(greedy_action, env=env),
        action_features=functools.partial(features, env=env),
    )
