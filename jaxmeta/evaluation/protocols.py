"""Published protocols of evaluation: how many episodes an agent adapts for, and in how many it is tested.

| protocol | adapts | is tested | is scored by |
|---|---|---|---|
| `META_WORLD` (Yu et al. 2019, "Meta-World") | 10 episodes | 3 episodes | `success_rate` |
| `XLAND` (Nikulin et al. 2023, "XLand-MiniGrid") | in its test episodes | 25 episodes | `trial_returns`, mean and 20th percentile |
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks, rollouts
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.evaluation.tails import tail_summary
from jaxmeta.evaluation.trials import Trials, trials
from jaxmeta.rollouts.fits import check_fits
from jaxmeta.tasks import environments, time_limit
from jaxmeta.types import Environment, Learner, Meta, Task, Trajectory


class Protocol(NamedTuple):
    """Episodes of adaptation and of test, in each task."""

    adaptation: int
    """Episodes that the agent learns from before it is tested."""
    tests: int
    """Episodes that count."""


META_WORLD = Protocol(adaptation=10, tests=3)
"""Meta-World's ML1, ML10 and ML45."""
XLAND = Protocol(adaptation=0, tests=25)
"""XLand-MiniGrid's trials; an agent adapts in its memory, so all episodes count."""
PROTOCOLS = {"meta_world": META_WORLD, "xland": XLAND}
"""Protocols by name."""


class Tested(NamedTuple):
    """The test episodes of each task, ``[M, E]``; NaN where an episode did not end or is of a broken stream."""

    returns: jax.Array
    """Undiscounted returns."""
    highest: jax.Array
    """The highest reward of a step: Meta-World calls an episode a success if it succeeds at any step."""


@checks.arguments
def run_protocol(
    key: jax.Array,
    meta: Meta,
    tasks: Task,
    *,
    learner: Learner,
    env: Environment,
    horizon: int,
    protocol: Protocol,
    in_context: bool,
    num_updates: int = 1,
    tasks_per_chunk: int = 20,
) -> Tested:
    """The test episodes of a protocol in each task, ``[M, E]``.

    Args:
        key: Random key.
        meta: Input of the learner: ``state.meta``.
        tasks: Tasks with a leading axis, ``[M]``.
        learner: The learner.
        env: The family's environment.
        horizon: The time limit of an episode, in steps.
        protocol: `META_WORLD`, `XLAND` or your own.
        in_context: The learner learns in its memory, as RL² does: all episodes are one trial. Otherwise each of
            ``num_updates`` updates learns from ``protocol.adaptation`` new episodes.
        num_updates: Updates of a learner that does not learn in its memory; without adaptation there is none.
        tasks_per_chunk: Tasks evaluated at a time; bounds memory.

    Raises:
        ValueError: a number is out of range; ``horizon`` is less than the family's; the learner does not fit the environment, or
            has no agent that updates could change without ``in_context``.
    """
    checks.at_least("horizon", horizon, 1)
    limit = time_limit.ends_by(env)
    if limit is not None and horizon < limit:
        raise ValueError(
            f"horizon={horizon} must be at least {limit}: an episode that is cut has no return"
        )
    checks.at_least("protocol.adaptation", protocol.adaptation, 0)
    checks.at_least("protocol.tests", protocol.tests, 1)
    checks.field("in_context", in_context, bool)
    checks.at_least("num_updates", num_updates, 0)
    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    num_tasks = environments.num_tasks("tasks", tasks, env)
    check_fits(meta, tasks, learner=learner, env=env)
    if not (in_context or jax.tree.leaves(jax.eval_shape(learner.init, key, meta))):
        raise ValueError(
            "in_context=False, but the learner has no agent that updates could change: it learns in its memory"
        )
    if in_context:
        steps = sum(protocol) * horizon
        how = dict(num_steps=steps, tasks_per_chunk=tasks_per_chunk)
        lived = trials(key, meta, tasks, learner=learner, env=env, **how)
        return jax.vmap(partial(_of_trial, protocol=protocol))(lived)

    before = rollouts.Setup(learner, env, max(protocol.adaptation, 1), horizon)
    after = rollouts.Setup(learner, env, protocol.tests, horizon)

    def task_tested(key_and_task: tuple) -> Tested:
        key, task = key_and_task
        begin_key, adapt_key, test_key = jax.random.split(key, 3)
        agent, streams = rollouts.begin(begin_key, meta, task, setup=before)
        if protocol.adaptation and num_updates:
            adapt = partial(rollouts.adapt, setup=before, num_updates=num_updates, restart=True)
            agent, _, _ = adapt(adapt_key, meta, task, agent, streams)
        return _of_streams(rollouts.sample(test_key, meta, task, agent, setup=after))

    keys = jax.random.split(key, num_tasks)
    return jax.lax.map(task_tested, (keys, tasks), batch_size=min(tasks_per_chunk, num_tasks))


def _of_trial(lived: Trials, protocol: Protocol) -> Tested:
    """The test episodes of one trial ``[T]``."""
    index = episode_index(lived.last)
    episode = protocol.adaptation + jnp.arange(protocol.tests)
    within = index[None, :] == episode[:, None]
    ended = episode < index[-1] + lived.last[-1].astype(index.dtype)
    return _summed(lived.reward[None], within, ended & lived.good)


def _of_streams(data: Trajectory) -> Tested:
    """The first episodes of streams ``[N, T]``."""
    index = jax.vmap(episode_index)(data.last)
    return _summed(data.reward, index == 0, jnp.any(data.last, axis=1) & finite_streams(data))


def _summed(reward: jax.Array, within: jax.Array, good: jax.Array) -> Tested:
    """Returns and highest rewards of the steps ``within [E, T]``, NaN unless ``good [E]``."""
    returns = jnp.sum(jnp.where(within, reward, 0.0), axis=1)
    highest = jnp.max(jnp.where(within, reward, -jnp.inf), axis=1)
    return Tested(*(jnp.where(good, x, jnp.nan) for x in (returns, highest)))


def success_rate(tested: Tested, *, threshold: float = 0.0) -> float:
    """The share of successes among all test episodes: those with a step whose reward is above ``threshold``. NaN without any."""
    highest = np.asarray(tested.highest)
    known = highest[np.isfinite(highest)]
    return float(np.mean(known > threshold)) if known.size else float("nan")


def trial_returns(tested: Tested) -> dict[str, float | int | None]:
    """`tails.tail_summary` of the returns of whole trials, the sums over their test episodes."""
    return tail_summary(np.sum(np.asarray(tested.returns), axis=1))
