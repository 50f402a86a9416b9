"""The fast loop of meta-gradients: an actor-critic whose update depends on numbers η that are learned.

Advantage actor-critic with GAE(γ, λ) (Mnih et al. 2016, "Asynchronous methods for deep reinforcement
learning"; Schulman et al. 2016) that learns on and on in one task. Discount, λ, costs and step size are of
η where `Config.learns` names them, else of `Hyper`; η may hold a reward besides (Zheng, Oh & Singh 2018,
"On learning intrinsic rewards for policy gradient methods"). One update is differentiable in η and in the
agent before it, data fixed.
"""

import dataclasses
import functools
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import mean_over_streams, without_broken_streams
from jaxmeta.estimators.surrogates import leave_one_out_mean
from jaxmeta.estimators.units import advantage_scale
from jaxmeta.learners.gradient import policy_and_value
from jaxmeta.meta_updates.gradients import optimizer_step
from jaxmeta.meta_updates.outer_loop import Optimizer, as_arrays
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.encodings import encode_action, input_sizes
from jaxmeta.networks.policies import Policy, action_distributions, policy_learner
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Params, Trajectory

LEARNABLE = ("discount", "gae_lambda", "policy_cost", "value_cost", "entropy_cost", "step_size")
"""The entries of `Hyper` that `Config.learns` may name."""


INNER_OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": optax.sgd,
    # A square root has a derivative where gradients are zero only if something is added inside of it.
    "rmsprop": partial(optax.rmsprop, eps=1e-8, eps_in_sqrt=True),
    "adam": partial(optax.adam, eps_root=1e-8),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an agent and its update; `meta_gradient` adds its own."""

    num_streams: int = 16
    """Parallel instances of its task that an agent acts in (N)."""
    num_steps: int = 20
    """Steps of each between two updates (T)."""
    learns: tuple[str, ...] = ("discount", "gae_lambda")
    """The meta-learned entries, from `LEARNABLE`. They start at their values in `Hyper`; all others keep theirs."""
    intrinsic_reward: bool = False
    """Meta-learn a reward that is added to the task's (LIRPG); needs `outer_value`."""
    outer_value: bool = False
    """Learn a second value function, of the outer discount and λ, for the meta-objective. The agents' own is of
    the learned γ: far from the outer one it is no baseline, and a meta-gradient stays large and noisy even
    where nothing is left to learn."""
    value_targets: Literal["lambda", "monte_carlo"] = "lambda"
    """The targets of values: returns of the λ of the advantages, or of λ = 1, which do not wait for
    one value to have learned from the next."""
    normalize: bool = False
    """Divide each update's advantages by their root mean square, so that η does not change the length of a
    step by way of their size."""
    leave_one_out: bool = False
    """Take from the derivative of an advantage in η that of the other streams' mean at the same step. A value
    is a baseline of advantages and not of their derivative in γ, to which every later value adds: large, alike
    in all streams, and times a score nothing but noise. The agents' acts are the same."""
    inner_optimizer: Literal["sgd", "rmsprop", "adam"] = "sgd"
    """The optimiser of the agents; its state is part of an agent."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """A tanh network, categorical or Gaussian as the action space asks, or softmax-linear."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of policy, values and intrinsic reward."""
    rematerialize: bool = True
    """Compute an update's intermediate values again in the backward pass rather than keep them."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("num_streams", "num_steps", "unroll"):
            checks.at_least(name, getattr(self, name), 1)
        checks.distinct("learns", self.learns)
        for name in self.learns:
            checks.choice("learns", name, LEARNABLE)
        checks.choice("value_targets", self.value_targets, ("lambda", "monte_carlo"))
        checks.choice("inner_optimizer", self.inner_optimizer, INNER_OPTIMIZERS)
        if self.leave_one_out and self.num_streams < 2:
            raise ValueError(
                f"num_streams={self.num_streams} must be at least 2 with leave_one_out: there are no others"
            )
        if self.intrinsic_reward and not self.outer_value:
            raise ValueError(
                "outer_value=False must be True with intrinsic_reward: the agent's own value is of both "
                "rewards, and the meta-objective of the task's alone"
            )


class Hyper(NamedTuple):
    """Numbers of the actor-critic that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ of the agents."""
    gae_lambda: float = 0.95
    """λ of their advantages and of the targets of their value."""
    policy_cost: float = 1.0
    """Weight of the policy gradient."""
    value_cost: float = 0.5
    """Weight of half the squared error of values. At L = 1 it and λ have a meta-gradient through values
    only where `outer_value_cost` asks for good ones."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy, in nats a step."""
    step_size: float = 0.01
    """α of the agents' optimiser."""
    min_discount: float = 0.0
    """A learned γ is ``min_discount + (1 - min_discount) sigmoid(η)``."""
    intrinsic_scale: float = 0.01
    """Bound of the intrinsic reward."""
    outer_discount: float = 0.99
    """γ' of the meta-objective."""
    outer_lambda: float = 0.95
    """λ' of the meta-objective, and of the targets of the outer value."""
    outer_value_cost: float = 0.0
    """Weight of half the squared error of values in the meta-objective."""
    outer_entropy_cost: float = 0.0
    """Weight of the entropy in the meta-objective."""
    outer_kl_cost: float = 0.0
    """Weight of KL(π after the L updates || π before them) in the meta-objective, in nats a step."""
    learning_rate: float = 1e-2
    """Step size β of the outer optimiser."""
    max_grad_norm: float = 1.0
    """Clips the norm of the meta-gradient."""


HYPER_RANGES: dict[str, tuple[float, float]] = {
    "outer_discount": (0, 1),
    "outer_lambda": (0, 1),
    "min_discount": (0, 1),
    "intrinsic_scale": (0, 1e12),
}


class Meta(NamedTuple):
    """The meta-learned hyper-parameters η, and everything else that an agent reads.

    Where a number is learned, η says what it is, and ``hyper`` only where η began: change ``params``, not
    ``hyper``, and read `learned_hyper`. (``hyper.value_cost`` is also the outer value's, which no η changes.)
    """

    params: dict[str, Any]
    """η, unconstrained numbers ``[]`` by name; ``"reward"`` holds a network's parameters."""
    hyper: Hyper
    """The numbers that are not learned, and where the learned ones began."""


class Agent(NamedTuple):
    """An actor-critic."""

    params: dict[str, Params]
    """"policy", "value" and, where there is one, "outer_value"."""
    optimizer: Any
    """The optimiser's state."""


@checks.arguments
def actor_critic_learner(
    family: TaskFamily,
    config: Config,
    *,
    policy: Policy | None = None,
    value: Value | None = None,
) -> "ActorCriticLearner":
    """The actor-critic that ``config`` describes, on tasks of ``family``.

    Args:
        family: The tasks' family.
        config: Sizes, counts and choices.
        policy: The agents' policy; None builds the one that ``config.policy`` names.
        value: Their values; None builds tanh networks.

    Raises:
        ValueError: the policy does not fit the family's action space; ``config.policy`` names a policy beside
            ``policy``.
    """
    policy, value = policy_and_value(
        family, config, policy, value, more_networks=config.intrinsic_reward
    )
    return ActorCriticLearner(family, config, policy, value)


@dataclasses.dataclass(frozen=True)
class ActorCriticLearner:
    """An actor-critic learner, with the functions that a meta-objective needs. All are for one task."""

    family: TaskFamily
    """The tasks' family."""
    config: Config
    """Sizes, counts and choices."""
    policy: Policy
    """The agents' policy."""
    value: Value
    """The agents' values."""

    @functools.cached_property
    def learner(self) -> Learner:
        """The learner."""
        return policy_learner(
            self.policy,
            init=self.birth,
            params=lambda meta, agent: agent.params["policy"],
            update=jax.checkpoint(self.update) if self.config.rematerialize else self.update,
            reads=Meta,
        )

    def init(self, key: jax.Array, hyper: Hyper) -> Meta:
        """``(key, hyper) -> meta``: η where ``hyper`` says that it begins."""
        hyper = as_arrays(hyper)
        params: dict[str, Any] = {name: _unconstrained(name, hyper) for name in self.config.learns}
        if self.config.intrinsic_reward:
            params["reward"] = _reward_network(self.family, self.config).init(key)
        return Meta(params, hyper)

    def birth(self, key: jax.Array, meta: Meta) -> Agent:
        """A newborn agent."""
        policy_key, value_key, outer_key = jax.random.split(key, 3)
        params = {"policy": self.policy.init(policy_key), "value": self.value.init(value_key)}
        if self.config.outer_value:
            params["outer_value"] = self.value.init(outer_key)
        optimizer = INNER_OPTIMIZERS[self.config.inner_optimizer](learned_hyper(meta).step_size)
        return Agent(params, optimizer.init(params))

    def update(self, key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        """The agent after a step down its loss on ``data [N, T]``."""
        del key
        h, now = learned_hyper(meta), agent.params
        data, good = without_broken_streams(data)
        # Outside of the loss, and live: what the loss takes as given, the meta-gradient does not.
        reward = self.shaped(meta, data, h)
        advantage, target = self.evaluation(now["value"], data, reward, h.discount, h.gae_lambda)
        advantage = self.steadied(advantage, good)
        if self.config.outer_value:
            outer = h.outer_discount, h.outer_lambda
            _, outer_target = self.evaluation(now["outer_value"], data, data.reward, *outer)

        def loss(params: Params) -> jax.Array:
            weighted = h.policy_cost * advantage
            total = self.policy_loss(params["policy"], data, good, weighted, h.entropy_cost)
            total += h.value_cost * self.value_loss(params["value"], data, good, target)
            if self.config.outer_value:
                error = self.value_loss(params["outer_value"], data, good, outer_target)
                total += meta.hyper.value_cost * error
            return total

        return self.moved(agent, jax.grad(loss)(now), h.step_size)

    def moved(self, agent: Agent, gradient: Params, step_size: Any) -> Agent:
        """The agent after a step of its optimiser down ``gradient``."""
        optimizer = INNER_OPTIMIZERS[self.config.inner_optimizer](step_size)
        return Agent(*optimizer_step(optimizer, gradient, agent.optimizer, agent.params))

    def outer_loss(self, params: dict[str, Params], data: Trajectory, hyper: Hyper) -> jax.Array:
        """The actor-critic's loss of an agent's ``params`` at the outer discount and λ on ``data [N, T]``, ``[]``;
        values are data."""
        critic = params["outer_value" if self.config.outer_value else "value"]
        data, good = without_broken_streams(data)
        advantage, target = jax.lax.stop_gradient(
            self.evaluation(critic, data, data.reward, hyper.outer_discount, hyper.outer_lambda)
        )
        loss = self.policy_loss(params["policy"], data, good, advantage, hyper.outer_entropy_cost)
        return loss + hyper.outer_value_cost * self.value_loss(critic, data, good, target)

    def distribution(self, params: Params, data: Trajectory) -> Distribution:
        """The distributions ``[N, T]`` of actions of the policy's ``params`` on ``data [N, T]``."""
        return action_distributions(self.policy, params, data)

    def shaped(self, meta: Meta, data: Trajectory, hyper: Hyper) -> jax.Array:
        """The rewards that the agent learns from, ``[N, T]``: with the intrinsic reward, where there is one."""
        if not self.config.intrinsic_reward:
            return data.reward
        network = _reward_network(self.family, self.config)
        inputs = _state_actions(data, self.family)
        intrinsic = jnp.tanh(network.apply(meta.params["reward"], inputs))
        return data.reward + hyper.intrinsic_scale * intrinsic

    def evaluation(
        self, params: Params, data: Trajectory, reward: jax.Array, gamma: Any, lambda_: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Advantages and the value's targets, ``[N, T]``."""
        obs = data.timestep.obs
        v, v_next = self.value.apply(params, obs), self.value.apply(params, data.next_obs)

        def found(lambda_: Any) -> tuple[jax.Array, jax.Array]:
            return jax.vmap(partial(advantages_and_targets, lambda_=lambda_))(
                reward, gamma * data.discount, v=v, v_next=v_next, last=data.last
            )

        advantage, target = found(lambda_)
        return advantage, target if self.config.value_targets == "lambda" else found(1.0)[1]

    def steadied(self, advantage: jax.Array, good: jax.Array) -> jax.Array:
        """Advantages ``[N, T]`` with less variance in their derivative, and of size 1, as configured."""
        if self.config.leave_one_out:
            at_each_step = jax.vmap(leave_one_out_mean, in_axes=(1, None), out_axes=1)
            others = at_each_step(advantage, good)
            advantage -= others - jax.lax.stop_gradient(others)
        if self.config.normalize:
            counted = jnp.broadcast_to(good[:, None], advantage.shape)
            advantage = advantage / advantage_scale(advantage, counted)
        return advantage

    def policy_loss(
        self, params: Params, data: Trajectory, good: jax.Array, advantage: Any, entropy_cost: Any
    ) -> jax.Array:
        """Minus the policy gradient's surrogate and the entropy's share, ``[]``."""
        pi = self.distribution(params, data)
        gain = mean_over_streams(pi.log_prob(data.action) * advantage, good)
        return -gain - entropy_cost * mean_over_streams(pi.entropy(), good)

    def value_loss(
        self, params: Params, data: Trajectory, good: jax.Array, target: jax.Array
    ) -> jax.Array:
        """Half the squared error of values, ``[]``."""
        error = target - self.value.apply(params, data.timestep.obs)
        return mean_over_streams(error**2, good) / 2


def learned_hyper(meta: Meta) -> Hyper:
    """``meta.hyper`` with what is learned in its place, differentiable in ``meta.params``."""
    now: dict[str, Any] = {
        name: _constrained(name, x, meta.hyper)
        for name, x in meta.params.items()
        if name in LEARNABLE
    }
    return meta.hyper._replace(**now)


def _constrained(name: str, x: jax.Array, hyper: Hyper) -> Any:
    """γ and λ by a sigmoid, costs and step sizes by an exponential."""
    if name == "discount":
        return hyper.min_discount + (1.0 - hyper.min_discount) * jax.nn.sigmoid(x)
    return jax.nn.sigmoid(x) if name == "gae_lambda" else jnp.exp(x)


def _unconstrained(name: str, hyper: Hyper) -> Any:
    """The inverse, of a value that is as close to the ends of its range as has a derivative."""
    x = getattr(hyper, name)
    if name not in ("discount", "gae_lambda"):
        return jnp.log(jnp.maximum(x, 1e-6))
    if name == "discount":
        x = (x - hyper.min_discount) / (1.0 - hyper.min_discount)
    x = jnp.clip(x, 1e-4, 1.0 - 1e-4)
    return jnp.log(x) - jnp.log1p(-x)


def _reward_network(family: TaskFamily, config: Config) -> Value:
    """``(s, a) -> []``, of `_state_actions`."""
    obs_size, past_size, _ = input_sizes(family)
    return value_mlp((obs_size + past_size - 1,), config.hidden_sizes)


def _state_actions(data: Trajectory, family: TaskFamily) -> jax.Array:
    """Observations and actions side by side, ``[N, T, O + A]``."""
    obs = data.timestep.obs.reshape(*data.reward.shape, -1)
    action = jax.vmap(lambda action: encode_action(action, family))(data.action)
    return jnp.concatenate([obs, action], axis=-1)
