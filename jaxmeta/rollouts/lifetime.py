"""A lifetime: a newborn agent acts, learns and acts again. Written for one task; callers ``vmap`` over tasks.

Results are differentiable with respect to ``meta`` and ``agent`` through the learner's updates
alone. Experience is data.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import keys
from jaxmeta.types import Environment, History, Learner, Lifetime, Meta, Stream, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Setup:
    """A learner, its environment, and how much experience it collects at a time."""

    learner: Learner
    """The learner that acts and is updated."""
    env: Environment
    """The environment of all tasks: ``family.env``."""
    num_streams: int
    """Parallel streams of a task (N)."""
    num_steps: int
    """Steps of each stream between two updates (T)."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by: `jax.lax.scan`."""

    def __post_init__(self) -> None:
        checks.instance("learner", self.learner, Learner)
        for name in ("num_streams", "num_steps", "unroll"):
            object.__setattr__(self, name, checks.at_least(name, getattr(self, name), 1))

    @property
    def env_steps(self) -> int:
        """Environment steps of one task between two updates: N T."""
        return self.num_streams * self.num_steps

    def collects(self, *, restart: bool = False, trial: bool = False) -> Lifetime:
        """The streams and steps of this setup, for `MetaAlgorithm.lifetime`."""
        return Lifetime(self.num_streams, self.num_steps, restart, trial)


@checks.arguments
def begin(key: jax.Array, meta: Meta, task: Task, *, setup: Setup) -> tuple[Any, Stream]:
    """A newborn agent, and its streams ``[N]`` at the start of their first episodes."""
    agent_key, stream_key = jax.random.split(key)
    agent = keys.all_plain(setup.learner.init(agent_key, meta))
    return agent, begin_streams(stream_key, meta, task, setup=setup)


@checks.arguments
def begin_streams(key: jax.Array, meta: Meta, task: Task, *, setup: Setup) -> Stream:
    """N streams at the start of an episode, with new memories."""
    return jax.vmap(
        lambda key: begin_stream(key, meta, task, learner=setup.learner, env=setup.env)
    )(jax.random.split(key, setup.num_streams))


@checks.arguments
def collect(
    key: jax.Array, meta: Meta, task: Task, agent: Any, streams: Stream, *, setup: Setup
) -> tuple[Stream, Trajectory]:
    """``(streams [N], trajectories [N, T])`` after the agent has acted for T steps in each stream.

    Raises:
        ValueError: ``streams`` are not as many as ``setup`` says.
    """

    def act(key: jax.Array, stream: Stream) -> tuple[Stream, Trajectory]:
        return rollout(
            key,
            meta,
            task,
            agent,
            stream,
            learner=setup.learner,
            env=setup.env,
            num_steps=setup.num_steps,
            unroll=setup.unroll,
        )

    num_streams = streams.timestep.first.shape[0]
    if num_streams != setup.num_streams:
        raise ValueError(
            f"streams holds {num_streams} streams; it must hold num_streams={setup.num_streams}"
        )
    return jax.vmap(act)(jax.random.split(key, num_streams), streams)


@checks.arguments
def sample(key: jax.Array, meta: Meta, task: Task, agent: Any, *, setup: Setup) -> Trajectory:
    """Trajectories ``[N, T]`` of the agent in new streams."""
    begin_key, act_key = jax.random.split(key)
    streams = begin_streams(begin_key, meta, task, setup=setup)
    return collect(act_key, meta, task, agent, streams, setup=setup)[1]


@checks.arguments
def adapt(
    key: jax.Array,
    meta: Meta,
    task: Task,
    agent: Any,
    streams: Stream,
    *,
    setup: Setup,
    num_updates: int,
    restart: bool = False,
) -> tuple[Any, Stream, History]:
    """``(agent, streams, history [K])`` after K = ``num_updates`` rounds of acting and one update.

    With ``restart`` all streams begin anew after each update: the independent episodes from the
    initial state that MAML assumes. Without ``restart`` streams continue, with their episodes and
    memories.

    For each round the history holds the agent that acted, still differentiable, and its experience.
    """

    checks.at_least("num_updates", num_updates, 0)
    checks.field("restart", restart, bool)

    def update(carry: tuple, _: None) -> tuple[tuple, History]:
        key, agent, streams = carry
        key, act_key, update_key, restart_key = jax.random.split(key, 4)
        streams, trajectories = collect(act_key, meta, task, agent, streams, setup=setup)
        history = History(agent, trajectories)
        agent = setup.learner.update(keys.plain(update_key), meta, agent, trajectories)
        if restart:
            streams = begin_streams(restart_key, meta, task, setup=setup)
        return (key, agent, streams), history

    carry = (key, agent, streams)
    if num_updates == 0:  # under `jax.disable_jit` a scan of no steps has no shapes
        _, shapes = jax.eval_shape(update, carry, None)
        return agent, streams, jax.tree.map(_none_of, shapes)
    (_, agent, streams), history = jax.lax.scan(update, carry, length=num_updates)
    return agent, streams, history


@checks.arguments
def lifetime(
    key: jax.Array,
    meta: Meta,
    task: Task,
    *,
    setup: Setup,
    num_updates: int,
    restart: bool = False,
) -> History:
    """The history ``[K + 1]`` from birth to the experience after the last update.

    Round k holds the agent after k updates and its experience. So round 0 is the newborn agent's,
    and round K the adapted agent's.
    """
    begin_key, adapt_key, after_key = jax.random.split(key, 3)
    checks.at_least("num_updates", num_updates, 0)
    checks.field("restart", restart, bool)
    agent, streams = begin(begin_key, meta, task, setup=setup)
    if num_updates == 0:
        _, after = collect(after_key, meta, task, agent, streams, setup=setup)
        return jax.tree.map(lambda x: x[None], History(agent, after))
    agent, streams, history = adapt(
        adapt_key,
        meta,
        task,
        agent,
        streams,
        setup=setup,
        num_updates=num_updates,
        restart=restart,
    )
    _, after = collect(after_key, meta, task, agent, streams, setup=setup)
    return append(history, History(agent, after))


@checks.arguments
def replay(key: jax.Array, meta: Meta, trajectories: Trajectory, *, learner: Learner) -> History:
    """The history of `lifetime` with the same key on recorded ``trajectories [K + 1, N, T]``.

    No environment is stepped. So a changed ``meta`` can be tried on recorded experience, as in
    ProMP's epochs or a line search. The agents are computed from ``meta``, from birth through every
    update.
    """
    # The keys of `lifetime` are used again on purpose.
    begin_key, adapt_key, _ = jax.random.split(jax.random.clone(key), 3)
    agent_key, _ = jax.random.split(begin_key)

    def update(carry: tuple, trajectories: Trajectory) -> tuple[tuple, Any]:
        key, agent = carry
        key, _, update_key, _ = jax.random.split(key, 4)
        return (key, learner.update(keys.plain(update_key), meta, agent, trajectories)), agent

    learned_from = jax.tree.map(lambda x: x[:-1], trajectories)
    newborn = keys.all_plain(learner.init(agent_key, meta))
    if trajectories.reward.shape[0] == 1:
        return History(jax.tree.map(lambda x: x[None], newborn), trajectories)
    (_, agent), agents = jax.lax.scan(update, (adapt_key, newborn), learned_from)
    return History(append(agents, agent), trajectories)


def _none_of(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """An array with a leading axis of length 0."""
    if keys.is_key(shape):
        return jnp.broadcast_to(jax.random.key(0), (0, *shape.shape))
    return jnp.zeros((0, *shape.shape), shape.dtype)


def append(past: Any, now: Any) -> Any:
    """``past [K]`` with ``now`` behind it, ``[K + 1]``."""
    return jax.tree.map(lambda past, now: jnp.concatenate([past, now[None]]), past, now)
