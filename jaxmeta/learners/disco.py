"""DiscoRL: agents that follow the update rule that Oh et al. 2025 discovered, or one of the same form.

Oh et al. 2025, "Discovering state-of-the-art reinforcement learning algorithms". The rule is a meta-network, which says what
an agent's policy and its two predictions should be (see `networks.disco`). It reads more than the rules of `update_rules` do:
action values, a slow copy of the agent, old experience, and a memory of the agent's whole life. So its agents have networks
and a state of their own.

With the published weights an agent learns by Disco103. Without them the weights are random, for meta-training.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.estimators.returns import action_value_targets
from jaxmeta.estimators.streams import mean_over_streams, without_broken_streams
from jaxmeta.learners import buffers
from jaxmeta.learners.buffers import Buffer
from jaxmeta.learners.update_rules import AgentOptimizer, Meta
from jaxmeta.meta_updates.gradients import optimizer_step
from jaxmeta.networks import disco as networks
from jaxmeta.networks.disco import AgentNetwork, Experience, Memory, Outputs, Sizes, Targets
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.policies import feed_forward, policy_learner
from jaxmeta.networks.weights import read_arrays
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Params, Trajectory


class Hyper(NamedTuple):
    """Numbers of agents that follow DiscoRL; the defaults are the paper's."""

    discount: float = 0.997
    """γ."""
    gae_lambda: float = 0.95
    """λ of the traces by which action values learn."""
    step_size: float = 3e-4
    """Step size of the agents' optimiser."""


class DiscoHyper(Protocol):
    """The part of an algorithm's `Hyper` that these agents read."""

    @property
    def discount(self) -> float:
        """γ of the agents."""

    @property
    def gae_lambda(self) -> float:
        """λ of their traces."""

    @property
    def step_size(self) -> float:
        """Step size of their optimiser."""


class DiscoRule(NamedTuple):
    """A rule of DiscoRL's form."""

    sizes: Sizes
    """The sizes of the meta-network."""
    init: Callable[[jax.Array], Params]
    """``(key) -> params`` of the rule: a dict of arrays by the names of the published file."""


@checks.arguments
def disco(weights: str | os.PathLike | None = None, *, sizes: Sizes = Sizes()) -> DiscoRule:
    """The rule, with published or with random weights.

    Args:
        weights: An ``.npz`` file with the arrays of `networks.disco.shapes`, such as ``disco_103.npz`` of the paper's code;
            None draws random weights.
        sizes: The sizes of the meta-network, of which published weights have the defaults.

    Raises:
        ValueError: the file lacks an array, or has one of another shape or type or with NaN in it, or is no such file.
        OSError: the file cannot be read.
    """
    sizes = Sizes(*(checks.at_least(name, x, 1) for name, x in sizes._asdict().items()))
    if weights is None:
        return DiscoRule(sizes, lambda key: networks.init(key, sizes))
    read = read_arrays("weights", weights, networks.shapes(sizes))
    return DiscoRule(sizes, lambda key: {name: jnp.asarray(x, float) for name, x in read.items()})


class Replay(NamedTuple):
    """Old experience that an update learns from."""

    num_steps: int
    """T, the steps of each piece: those of every stream between two updates."""
    capacity: int = 1024
    """The last pieces of experience that an agent keeps, each a stream between two updates."""
    num_sampled: int = 64
    """Pieces in an update, drawn uniformly with replacement. An agent begins to learn when it has as many."""


class Piece(NamedTuple):
    """A stream between two updates, as agents keep it."""

    obs: jax.Array
    """``[T + 1, *obs_shape]``; after an episode's end this is the first observation of the next episode."""
    action: jax.Array
    """``[T]``."""
    reward: jax.Array
    """``[T]``."""
    last: jax.Array
    """``[T]``, bool: the episode ended with this step."""
    behaviour: jax.Array
    """``[T, A]``, logits by which the agent acted."""
    first: jax.Array
    """``[T]``, bool: the first step of an episode."""


class Moments(NamedTuple):
    """Running moments, from 0."""

    first: jax.Array
    """``[]``."""
    second: jax.Array
    """``[]``."""
    missing: jax.Array
    """``[]``, the weight that the starting value still has."""


class Agent(NamedTuple):
    """One that learns by the rule."""

    params: Params
    """Parameters of its network."""
    slow: Params
    """Their moving average."""
    optimizer: Any
    """The optimiser's state."""
    moments: Moments
    """Moments of its advantages."""
    memory: Memory
    """The rule's memory of its life."""
    pieces: Any
    """The buffer of its experience, or ()."""


class Estimates(NamedTuple):
    """The values, advantages and targets of B pieces by an agent's action values."""

    value: jax.Array
    """V ``[B, T + 1]``."""
    slow_q: jax.Array
    """Q' ``[B, T + 1, A]``, of the slow copy."""
    slow_value: jax.Array
    """V' ``[B, T + 1]``: the mean of Q' under the policy, not under its slow copy."""
    target: jax.Array
    """G ``[B, T]``, which the action values learn."""
    advantage: jax.Array
    """G - V' ``[B, T]``."""


VALUE_COST = 0.2
"""Weight of the action values' part of an agent's loss."""

SLOW_DECAY = 0.9
"""The share of itself that a slow copy keeps in an update."""

MOMENT_DECAY = 0.99
"""The share of themselves that the moments keep in an update."""


def adam(step_size: Any) -> optax.GradientTransformation:
    """Adam whose steps are clipped to ±``step_size`` in each entry, the optimiser of the paper's agents.

    No derivative runs through the scale of its steps, so a meta-gradient needs no ``eps_root``.
    """
    inner = optax.scale_by_adam()

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = inner.update(gradient, state, params)
        first, second = (
            optax.tree.bias_correction(x, decay, state.count)
            for x, decay in ((state.mu, 0.9), (state.nu, 0.999))
        )
        second = jax.lax.stop_gradient(second)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), first, second), state

    scaled = optax.GradientTransformation(inner.init, update)
    return optax.chain(scaled, optax.clip(1.0), optax.scale(-step_size))


@checks.arguments
def disco_learner(
    rule: DiscoRule,
    family: TaskFamily,
    *,
    hidden_sizes: Sequence[int] = (512, 512),
    model_size: int = 128,
    replay: Replay | None = None,
    first_steps: bool = True,
    optimizer: AgentOptimizer = adam,
    rematerialize: bool = True,
) -> "DiscoLearner":
    """Agents that follow ``rule`` in tasks of ``family``, whose actions are discrete.

    Args:
        rule: How they learn.
        family: Where the spaces come from.
        hidden_sizes: Layers of the network's torso.
        model_size: Units of its model of actions.
        replay: Old experience that updates learn from; None learns from the newest alone. It needs flashbax.
        first_steps: Whether the first step of an episode counts in an agent's loss. In the authors' code it does not in
            environments that begin the next episode in the step that ends one, such as their Catch. Where an episode has one
            step, or what an agent does first matters, it should count.
        optimizer: The agents' optimiser, ``step_size -> optax.GradientTransformation``.
        rematerialize: Compute an update's intermediate values again in the reverse pass.

    Raises:
        ValueError: the actions are not discrete.
        ImportError: ``replay`` is given and flashbax is not installed.
    """
    space = family.action_space
    if not isinstance(space, spaces.Discrete) or space.shape != ():
        raise ValueError(
            f"family {family.name!r} has the action space {space!r}; DiscoRL needs a Discrete one, because its rule reads "
            "an entry for each action"
        )
    checks.field("first_steps", first_steps, bool)
    checks.field("rematerialize", rematerialize, bool)
    if replay is not None:
        checks.at_least("replay.num_steps", replay.num_steps, 1)
        checks.at_least("replay.capacity", replay.capacity, 1)
        checks.at_least("replay.num_sampled", replay.num_sampled, 1, replay.capacity)
    network = networks.agent_network(
        family.observation_shape,
        space.n,
        num_predictions=rule.sizes.num_predictions,
        hidden_sizes=hidden_sizes,
        model_size=model_size,
    )
    return DiscoLearner(rule, family, network, replay, first_steps, optimizer, rematerialize)


@dataclasses.dataclass(frozen=True)
class DiscoLearner:
    """Agents of one family that follow DiscoRL; `disco_learner` explains the fields."""

    rule: DiscoRule
    """The rule that the agents follow."""
    family: TaskFamily
    """The family of their tasks."""
    network: AgentNetwork
    """The agents' network."""
    replay: Replay | None
    """Old experience that updates learn from."""
    first_steps: bool
    """Whether the first step of an episode counts in an agent's loss."""
    optimizer: AgentOptimizer
    """``step_size -> optax.GradientTransformation`` of the agents."""
    rematerialize: bool
    """Whether the backward pass computes intermediate values again."""

    @functools.cached_property
    def learner(self) -> Learner:
        """The learner."""
        policy = feed_forward(
            self.network.init,
            lambda params, obs: Categorical(self.network.apply(params, obs).logits),
        )
        return policy_learner(
            policy,
            init=self.birth,
            params=lambda meta, agent: agent.params,
            update=jax.checkpoint(self.update) if self.rematerialize else self.update,
            reads=Meta,
        )

    @functools.cached_property
    def buffer(self) -> Buffer | None:
        """The buffer of pieces, if there is replay."""
        if self.replay is None:
            return None
        num_steps, capacity, num_sampled = self.replay
        actions, shape = self.family.action_space, self.family.observation_shape
        piece = Piece(
            jnp.zeros((num_steps + 1, *shape)),
            jnp.zeros(num_steps, actions.dtype),
            jnp.zeros(num_steps),
            jnp.zeros(num_steps, bool),
            jnp.zeros((num_steps, actions.n)),
            jnp.zeros(num_steps, bool),
        )
        return buffers.item_buffer(piece, capacity, num_sampled, name="replay.capacity")

    def policy(self, params: Params, data: Trajectory) -> Categorical:
        """The policy of an agent's ``params`` where ``data [N, T]`` was recorded."""
        return Categorical(self.network.apply(params, data.timestep.obs).logits)

    def birth(self, key: jax.Array, meta: Meta) -> Agent:
        """A newborn agent, which is its own slow copy."""
        params = self.network.init(key)
        zero = jnp.zeros(())
        return Agent(
            params,
            params,
            self.optimizer(meta.hyper.step_size).init(params),
            Moments(zero, zero, jnp.ones(())),
            networks.memory_at_birth(self.rule.sizes),
            () if self.buffer is None else self.buffer.init(),
        )

    def update(self, key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        """The agent after a step on new ``data [N, T]``, or, with replay, on a draw from all that it keeps.

        Raises:
            ValueError: with replay, the streams have another number of steps than ``replay.num_steps``.
        """
        data, good = without_broken_streams(data)
        new = self.pieces(agent.params, data)
        if self.replay is None or self.buffer is None:
            return self.learn(meta, agent, new, good)
        if data.reward.shape[1] != self.replay.num_steps:
            raise ValueError(
                f"trajectories have {data.reward.shape[1]} steps; they must have replay.num_steps="
                f"{self.replay.num_steps}: old and new ones lie in one buffer"
            )
        agent = agent._replace(pieces=self.buffer.add(agent.pieces, new, good))
        drawn = self.buffer.sample(key, agent.pieces)
        everyone = jnp.ones(self.replay.num_sampled, bool)
        return jax.lax.cond(
            self.buffer.size(agent.pieces) >= self.replay.num_sampled,
            lambda agent: self.learn(meta, agent, drawn, everyone),
            lambda agent: agent,
            agent,
        )

    def pieces(self, params: Params, data: Trajectory) -> Piece:
        """The streams of ``data [N, T]``, which the agent with ``params`` collected."""
        obs = jnp.concatenate([data.timestep.obs, data.next_obs[:, -1:]], axis=1).astype(_float())
        behaviour = jax.lax.stop_gradient(self.network.apply(params, obs[:, :-1]).logits)
        first = data.timestep.first
        return Piece(obs, data.action, data.reward, data.last, behaviour, first)

    def learn(self, meta: Meta, agent: Agent, pieces: Piece, good: jax.Array) -> Agent:
        """The agent after a step on ``pieces [B]``, of which the ``good [B]`` (bool) count."""
        seen = self.network.apply(agent.params, pieces.obs)
        slow = self.network.apply(agent.slow, pieces.obs)
        found = estimates(seen, slow, pieces, meta.hyper)
        moments = updated_moments(agent.moments, found.advantage, good)
        experience = experience_of(seen, slow, pieces, found, moments)
        targets, memory = networks.apply(meta.params, agent.memory, experience, good)
        counts = jnp.ones_like(pieces.first) if self.first_steps else ~pieces.first

        def mean_loss(params: Params) -> jax.Array:
            outputs = self.network.apply(params, pieces.obs)
            return mean_over_steps(loss(outputs, targets, pieces, found.target), counts, good)

        params, state = optimizer_step(
            self.optimizer(meta.hyper.step_size),
            jax.grad(mean_loss)(agent.params),
            agent.optimizer,
            agent.params,
        )
        followed = jax.tree.map(
            lambda old, new: SLOW_DECAY * old + (1.0 - SLOW_DECAY) * new, agent.slow, agent.params
        )
        return Agent(params, followed, state, moments, memory, agent.pieces)


def estimates(seen: Outputs, slow: Outputs, pieces: Piece, hyper: DiscoHyper) -> Estimates:
    """Values, advantages and targets of ``pieces [B]``, by Retrace(λ) with the slow copy's (`action_value_targets`).

    All ends of episodes are alike here, a time limit too: after an end nothing is earned. No derivative runs through these
    numbers, as in the paper.
    """
    seen, slow = jax.lax.stop_gradient((seen, slow))
    policy = jax.nn.softmax(seen.logits)
    q, slow_q = networks.values_of(seen.q), networks.values_of(slow.q)
    value, slow_value = jnp.sum(policy * q, axis=-1), jnp.sum(policy * slow_q, axis=-1)
    rho = jnp.exp(
        _log_prob(seen.logits[:, :-1], pieces.action) - _log_prob(pieces.behaviour, pieces.action)
    )
    going_on = 1.0 - pieces.last.astype(value.dtype)

    target = jax.vmap(action_value_targets)(
        pieces.reward,
        hyper.discount * going_on,
        q=_of_action(slow_q[:, :-1], pieces.action),
        v_next=slow_value[:, 1:],
        c=hyper.gae_lambda * jnp.minimum(rho, 1.0),
        last=pieces.last,
    )
    return Estimates(value, slow_q, slow_value, target, target - slow_value[:, :-1])


def updated_moments(moments: Moments, x: jax.Array, good: jax.Array) -> Moments:
    """The moments after the rows of ``x [B, T]`` that are ``good`` (bool ``[B]``)."""

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        return MOMENT_DECAY * old + (1.0 - MOMENT_DECAY) * mean_over_streams(new, good)

    first, second = moved(moments.first, x), moved(moments.second, x**2)
    return Moments(first, second, MOMENT_DECAY * moments.missing)


def scaled(moments: Moments, x: jax.Array) -> jax.Array:
    """``x [...]`` less the mean, over the standard deviation, both without the share of their starting values."""
    there = 1.0 - moments.missing
    mean = moments.first / there
    variance = jnp.maximum(moments.second / there - mean**2, 0.0)
    return (x - mean) / (jnp.sqrt(variance + 1e-12) + 1e-6)


def experience_of(
    seen: Outputs, slow: Outputs, pieces: Piece, found: Estimates, moments: Moments
) -> Experience:
    """The rule's inputs from ``pieces [B]``. As in the paper, y and z alone are differentiable in an agent's parameters."""
    stopped = jax.lax.stop_gradient((seen.logits, slow.logits))
    policy, slow_policy = map(jax.nn.softmax, stopped)
    slow_q = found.slow_q[:, :-1]
    action_advantage = slow_q - found.slow_value[:, :-1, None]
    return Experience(
        policy,
        jax.nn.softmax(pieces.behaviour),
        slow_policy,
        seen.y,
        slow.y,
        seen.z,
        slow.z,
        pieces.action,
        pieces.reward,
        pieces.last,
        found.value,
        found.advantage,
        scaled(moments, found.advantage),
        slow_q,
        action_advantage,
        scaled(moments, action_advantage),
    )


def loss(outputs: Outputs, targets: Targets, pieces: Piece, value_target: jax.Array) -> jax.Array:
    """The loss ``[B, T]`` that an agent descends in its ``outputs [B, T + 1]``.

    The divergences of policy, y and z of the action from their targets; of the prediction of the policy at the next step,
    unless the episode ended; and `VALUE_COST` times the cross-entropy of the action's value.
    """
    next_policy = jax.lax.stop_gradient(outputs.logits[:, 1:])
    now = jax.tree.map(lambda x: x[:, :-1], outputs)
    z, aux, q = (_of_action(x, pieces.action) for x in (now.z, now.aux, now.q))
    going_on = 1.0 - pieces.last.astype(value_target.dtype)
    expected = networks.two_hot(jax.lax.stop_gradient(value_target))
    return (
        Categorical(targets.policy).kl(Categorical(now.logits))
        + Categorical(targets.y).kl(Categorical(now.y))
        + Categorical(targets.z).kl(Categorical(z))
        + going_on * Categorical(next_policy).kl(Categorical(aux))
        - VALUE_COST * jnp.sum(expected * jax.nn.log_softmax(q), axis=-1)
    )


def mean_over_steps(x: jax.Array, counts: jax.Array, good: jax.Array) -> jax.Array:
    """Mean ``[]`` of those steps of ``x [B, T]`` that count (bool ``[B, T]``) in rows that are ``good`` (bool ``[B]``).

    It is 0 where no step of the good rows counts, and NaN without a good row.
    """
    where = counts & good[:, None]
    number = jnp.where(jnp.any(good), jnp.maximum(jnp.sum(where), 1), 0)
    return jnp.sum(x, where=where) / number.astype(x.dtype)


def _of_action(x: jax.Array, action: jax.Array) -> jax.Array:
    """The entry ``[B, T, ...]`` of ``x [B, T, A, ...]`` that belongs to ``action [B, T]``."""
    index = action.reshape(*action.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=2)[:, :, 0]


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    return Categorical(logits).log_prob(action)


def _float() -> Any:
    """jax's default floating-point type."""
    return jnp.result_type(float)
