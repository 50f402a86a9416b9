"""One adapted agent on the host, for one real task.

    session = deployment.Session(jaxmeta.load("runs/mine"), seed=0)
    observation, _ = env.reset()  # a gymnasium environment, a robot, a web page
    while session.num_episodes < 20:
        action = session.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        if session.observe(reward, terminated, truncated, observation):
            observation, _ = env.reset()

A session does in one task, step by step, what `rollouts.lifetime` does in training: it remembers, counts episodes, and
updates the agent after as many streams as the learner had in training. Streams that were parallel there come one after
another here. With the same key, observations and rewards it draws the same actions.
"""

import os
import secrets
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.runs.experiments import Trained
from jaxmeta.runs.training import Run
from jaxmeta.tasks import boxes, composite, environments, keys
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Meta, MetaAlgorithm, TimeStep, Trajectory

MAGIC = b"jaxmeta session 1\n"
"""The first bytes of a saved session."""


class Session:
    """An agent that acts, remembers and learns in one real task.

    Learners with memory (`rl2`, `recurrent_q`, `recurrent_sac`, `varibad`, and `pearl`, which learns between episodes) learn with every
    step, in a trial of as many steps as in training; after that the memory goes on, with a warning. Learners that take gradient steps are updated after N episodes, N as in
    training; an episode is cut off at the family's horizon. Agents with a lifetime of their own (`meta_gradient`,
    `learned_objective`) are updated after N times T steps.
    """

    family: TaskFamily
    """The family that the agent was trained on."""
    returns: list[float]
    """Undiscounted returns of the finished episodes."""
    num_steps: int
    """Steps so far."""
    num_updates: int
    """Updates of the agent so far."""

    def __init__(self, trained: Trained, *, seed: int | jax.Array = 0) -> None:
        """A newborn agent of ``trained`` at the start of its first episode.

        Args:
            trained: A run, as `jaxmeta.load` returns it; a run in memory is
                ``experiments.Trained(None, algorithm, family, run)``.
            seed: Seed of all random draws, or a random key. With the key of a `rollouts.lifetime` the session repeats its draws.

        Raises:
            ValueError: ``trained`` is a population, or its algorithm does not say how it collects experience.
        """
        if not isinstance(trained, Trained):
            how = (
                "; of a run in memory it is experiments.Trained(None, algorithm, family, run)"
                if isinstance(trained, Run)
                else ""
            )
            raise TypeError(
                f"trained is a {environments.summary(trained)}; it must be a run, as jaxmeta.load(folder) returns it{how}"
            )
        checks.instance("trained.algorithm", trained.algorithm, MetaAlgorithm)
        checks.instance("trained.family", trained.family, TaskFamily)
        if np.shape(trained.run.num_updates) != ():
            raise ValueError(
                "trained is a population; choose a member: trained._replace(run=jax.tree.map(lambda x: x[0, 0], "
                "trained.run))"
            )
        if trained.algorithm.lifetime is None:
            raise ValueError(
                "trained.algorithm has no lifetime: algorithm._replace(lifetime=types.Lifetime(num_streams, num_steps))"
            )
        self.family = trained.family
        self.returns = []
        self.num_steps = self.num_updates = 0
        self._lifetime = trained.algorithm.lifetime
        self._learner, self._meta = trained.learner, trained.meta
        self._declared = environments.declared_observation_space(self.family.env)
        self._composite = self._declared if composite.is_composite(self._declared) else None
        self._space = self.family.action_space
        if not isinstance(seed, jax.Array):
            seed = jax.random.key(checks.at_least("seed", seed, 0, 2**32 - 1))
        # The keys of `rollouts.lifetime` and of the functions that it calls.
        begin_key, self._key, _ = jax.random.split(keys.typed(seed), 3)
        agent_key, _ = jax.random.split(begin_key)
        self._agent = keys.all_plain(self._learner.init(agent_key, self._meta))
        self._drawn: Any = (
            None  # observation, action and log-probability of an act without a result
        )
        self._earned, self._age = 0.0, 0
        self._memory = self._learner.memory(self._meta)
        self._previous = self._nothing()
        self._begin_round()

    @property
    def num_episodes(self) -> int:
        """Finished episodes."""
        return len(self.returns)

    def act(self, observation: Any) -> Any:
        """The action at ``observation``: an int for a `Discrete`, else an array ``[*action_shape]`` within its bounds.

        Args:
            observation: ``[*obs_shape]``, or a dictionary or a tuple for a space of several parts.

        Raises:
            ValueError: the observation is not of the family's observation space, or holds NaN or an infinity; or the
                result of the last action has not been observed.
        """
        if self._drawn is not None:
            raise ValueError("act was called twice: observe the result of the last action first")
        obs = self._checked("observation", observation)
        if self._lifetime.trial and self.num_steps == self._lifetime.num_steps:
            warnings.warn(
                f"the trial of {self.num_steps} steps is over; the memory goes on beyond what the agent was trained "
                "for. Begin a new Session for a new trial",
                stacklevel=2,
            )
        drawn, self._memory = _act(
            self._stream_keys,
            np.array([self._stream, self._step], np.int32),
            self._meta,
            self._agent,
            self._memory,
            (obs, *self._previous, np.asarray(self._age == 0)),
            learner=self._learner,
            composite_space=self._composite,
        )
        self._drawn = jax.device_get(drawn)
        return self._outward(self._drawn[1])

    def observe(self, reward: float, terminated: bool, truncated: bool, observation: Any) -> bool:
        """Takes in the result of the last action; True if the episode is over, so that the task must be reset.

        Args:
            reward: The reward.
            terminated: Whether the task ended the episode.
            truncated: Whether the episode was cut off, as by a time limit.
            observation: The observation after the action, before any reset.

        Raises:
            ValueError: there is no action to observe the result of, or a value is not as described: NaN and infinities
                are refused. Then nothing has changed, and ``observe`` may be called again.
        """
        if self._drawn is None:
            raise ValueError(
                "observe was called before act: there is no action whose result this is"
            )
        reward = _one("reward", reward, int | float)
        self._check_finite("reward", np.asarray(reward))
        terminated = _one("terminated", terminated, bool)
        truncated = _one("truncated", truncated, bool)
        successor = self._flat(self._checked("observation", observation))
        obs, action, log_prob = self._drawn
        first: Any = self._age == 0
        self._drawn, self._age = None, self._age + 1
        last = terminated or truncated or self._age >= self.family.horizon
        row: Any = Trajectory(
            timestep=TimeStep(obs, *self._previous, first),
            action=action,
            log_prob=log_prob,
            reward=np.asarray(reward),  # type: ignore[arg-type]
            discount=np.asarray(1.0 - terminated),  # type: ignore[arg-type]
            last=np.asarray(last),  # type: ignore[arg-type]
            next_obs=successor,
            memory=(),
        )
        place = self._stream, self._step
        for kept, x in zip(jax.tree.leaves(self._records), jax.tree.leaves(row), strict=True):
            kept[place] = x
        self._previous = action.astype(self._previous[0].dtype), np.asarray(reward, self._dtype)
        self.num_steps += 1
        self._earned += reward
        if last:
            self.returns.append(self._earned)
            self._earned, self._age = 0.0, 0
        self._advance(last)
        return last

    def save(self, path: str | os.PathLike) -> None:
        """Writes the agent, its memory and its experience since the last update to a file, completely or not at all.

        Raises:
            FileExistsError: ``path`` is a file that is no saved session.
            FileNotFoundError: its folder does not exist.
            ValueError: the result of the last action has not been observed.
        """
        path = checks.path("path", path)
        if self._drawn is not None:
            raise ValueError(
                "save was called after act: observe the result of the last action first"
            )
        if path.exists() and not _is_session(path):
            raise FileExistsError(f"path={str(path)!r} is a file that is no session: name another")
        content = flax.serialization.msgpack_serialize(
            {
                str(i): np.asarray(keys.words(x))
                for i, x in enumerate(jax.tree.leaves(self._state()))
            }
        )
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"path={str(path)!r}: its folder does not exist")
        # No file of the user's has this name.
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(MAGIC + content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, path: str | os.PathLike) -> None:
        """Goes on where the session that `save` wrote was, bit for bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no saved session, or is of another run's agent.
        """
        path = checks.path("path", path)
        if not path.exists():
            raise FileNotFoundError(f"path={str(path)!r} does not exist")
        if not _is_session(path):
            raise ValueError(f"path={str(path)!r} is no saved session")
        try:
            saved = flax.serialization.msgpack_restore(path.read_bytes()[len(MAGIC) :])
        except Exception as error:
            raise ValueError(f"path={str(path)!r} is damaged ({error})") from error
        if not isinstance(saved, dict):
            raise ValueError(f"path={str(path)!r} is damaged (it holds a {type(saved).__name__})")
        leaves, structure = jax.tree.flatten(self._state())
        found: list[Any] = [saved.get(str(i)) for i in range(len(saved))]
        returns = len(leaves) - 1  # their number grows
        for i, leaf in enumerate(leaves):
            here, there = np.asarray(keys.words(leaf)), found[i] if i < len(found) else ()
            fits = isinstance(there, np.ndarray) and there.dtype == here.dtype
            if not fits or (i != returns and np.shape(there) != here.shape):
                raise ValueError(f"path={str(path)!r} is a session of another run's agent")
        self._set_state(jax.tree.unflatten(structure, map(_like, found, leaves)))

    def _state(self) -> Any:
        """Everything that changes, as a pytree; the returns, whose number grows, come last."""
        counts = [self.num_steps, self.num_updates, self._age, self._step, self._stream]
        of_agent = (self._agent, self._memory, self._key, self._round_keys)
        of_round = (self._memories, self._records, self._previous, np.array(counts, np.int64))
        return of_agent, of_round, np.asarray(self._earned), np.asarray(self.returns, float)

    def _set_state(self, state: Any) -> None:
        of_agent, of_round, earned, returns = state
        self._agent, self._memory, self._key, self._round_keys = of_agent
        self._memories, records, previous, counts = of_round
        self._records, self._previous = jax.tree.map(np.array, (records, previous))
        self.num_steps, self.num_updates, self._age, self._step, self._stream = map(int, counts)
        self._earned, self.returns = float(earned), [float(x) for x in returns]
        self._stream_keys = jax.random.split(self._round_keys[0], self._lifetime.num_streams)
        self._drawn = None

    def _begin_round(self) -> None:
        """Empty streams ``[N, T]`` and new keys."""
        num_streams, num_steps = self._lifetime.num_streams, self._lifetime.num_steps
        self._key, act_key, update_key, _ = jax.random.split(self._key, 4)
        self._round_keys = jnp.stack([act_key, update_key])
        self._stream_keys = jax.random.split(act_key, num_streams)
        self._step = self._stream = 0
        number: Any = np.zeros((), self._dtype)
        flag: Any = np.zeros((), bool)
        obs: Any = np.zeros(self.family.observation_shape, self._dtype)
        action, reward = self._nothing()
        nothing = Trajectory(
            timestep=TimeStep(obs, action, reward, flag),
            action=action,
            log_prob=number,
            reward=number,
            discount=number,
            last=flag,
            next_obs=obs,
            memory=(),
        )
        self._records = jax.tree.map(
            lambda x: np.zeros((num_streams, num_steps, *x.shape), x.dtype), nothing
        )
        if self._lifetime.restart:
            self._memory, self._previous = self._learner.memory(self._meta), self._nothing()
        self._memories = [self._memory] * num_streams

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(jnp.result_type(float))

    def _nothing(self) -> tuple[Any, Any]:
        """The previous action and reward at the start of a stream."""
        kind = self._space.dtype
        dtype = self._dtype if jnp.issubdtype(kind, jnp.floating) else kind
        return np.zeros(self._space.shape, dtype), np.zeros((), self._dtype)

    def _advance(self, last: bool) -> None:
        """Goes to the next step, stream or round after a step that was the ``last`` of its episode, or was not."""
        self._step += 1
        if self._step < self._lifetime.num_steps and not (self._lifetime.restart and last):
            return
        self._stream, self._step = self._stream + 1, 0
        if self._stream < self._lifetime.num_streams:
            if self._lifetime.restart:
                self._memory, self._previous = self._learner.memory(self._meta), self._nothing()
            self._memories[self._stream] = self._memory
            return
        self._agent = _update(
            self._round_keys[1],
            self._meta,
            self._agent,
            self._records,
            self._memories,
            learner=self._learner,
        )
        self.num_updates += 1
        self._begin_round()

    def _checked(self, name: str, observation: Any) -> Any:
        """The observation as NumPy arrays; raises ValueError unless it is of the family's space."""
        try:
            observation = jax.tree.map(np.asarray, observation)
            composite.check(name, self._declared, observation)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error}; the family observes {self._declared!r}") from error
        for path, x in jax.tree_util.tree_leaves_with_path(observation):
            self._check_finite(f"{name}{jax.tree_util.keystr(path)}", x)
        return observation

    def _check_finite(self, name: str, x: np.ndarray) -> None:
        """Raises ValueError where a number is not finite, or is none that the network's precision holds.

        One such number would stay in the memory for ever.
        """
        with np.errstate(over="ignore"):
            broken = np.argwhere(~np.isfinite(x.astype(self._dtype)))
        if len(broken):
            place = tuple(int(i) for i in broken[0])
            raise ValueError(
                f"{name}{list(place) if place else ''} is {x[place]}; it must be a finite {self._dtype} number. Nothing was "
                "changed: repair the value, for example by the one before"
            )

    def _flat(self, observation: Any) -> Any:
        """One array ``[*obs_shape]`` of an observation of NumPy arrays."""
        if self._composite is None:
            return observation
        return np.asarray(composite.flatten(self._composite, observation))

    def _outward(self, action: np.ndarray) -> Any:
        """The action for the task: within the bounds, as an environment gets it in training."""
        if isinstance(self._space, spaces.Discrete):
            return int(action)
        if jnp.issubdtype(action.dtype, jnp.integer):
            return np.asarray(action)
        low, high = boxes.bounds(self._space)
        return np.clip(action, low.astype(action.dtype), high.astype(action.dtype))


# Compiled once for a learner, whatever the number of its sessions.


@partial(jax.jit, static_argnames=("learner", "composite_space"))
def _act(
    stream_keys: jax.Array,
    place: jax.Array,
    meta: Meta,
    agent: Any,
    memory: Any,
    at: tuple,
    *,
    learner: Learner,
    composite_space: Any,
) -> tuple[tuple, Any]:
    """``((obs, action, log_prob), memory)`` of one step, as `rollouts.rollout` computes them.

    ``place`` is the stream's number and its step; ``at`` is the observation, the previous action and reward, and whether
    the episode begins.
    """
    obs, *others = at
    stream, t = place
    if composite_space is not None:
        obs = composite.flatten(composite_space, obs)
    timestep = TimeStep(jnp.asarray(obs, float), *others)
    act_key = jax.random.split(keys.quick(stream_keys[stream]), 3)[0]
    action, log_prob, memory = learner.act(
        keys.at_step(act_key, t), meta, agent, keys.all_quick(memory), timestep
    )
    return (timestep.obs, action, log_prob), keys.all_plain(memory)


@partial(jax.jit, static_argnames="learner")
def _update(
    key: jax.Array,
    meta: Meta,
    agent: Any,
    records: Trajectory,
    memories: list,
    *,
    learner: Learner,
) -> Any:
    """The agent after an update on its streams ``[N, T]``."""
    memory = jax.tree.map(lambda *x: jnp.stack(x), *memories)
    return learner.update(key, meta, agent, records._replace(memory=memory))


def _one(name: str, value: Any, kind: Any) -> Any:
    """``value`` as one Python number of ``kind``."""
    array = np.asarray(value)
    number = array.item() if array.size == 1 else value
    right = "a boolean" if kind is bool else "a number"
    if not isinstance(number, kind) or (kind is not bool and isinstance(number, bool)):
        raise ValueError(
            f"{name}={value!r} must be {right}: observe(reward, terminated, truncated, observation)"
        )
    return number


def _is_session(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _like(leaf: np.ndarray, like: Any) -> Any:
    """Numbers as an array, or as a random key where ``like`` is one."""
    if keys.is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(like))
    return leaf if isinstance(like, np.ndarray) else jnp.asarray(leaf)
