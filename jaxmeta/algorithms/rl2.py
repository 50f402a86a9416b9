"""RL²: a recurrent policy whose memory, kept through all episodes of a trial, does the learning.

Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", and Wang et al. 2016,
"Learning to reinforcement learn". The network sees the observation, the previous action and reward and
whether an episode begins; it is trained for the return of whole trials by PPO (Duan et al. used TRPO) or
A2C (Wang et al.). See `learners.recurrent`; the networks are those of `networks.recurrent`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.learners.recurrent import Hyper, Loss
from jaxmeta.networks import encodings, recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.graph_actor_critic import graph_actor_critic
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.Config):
    """Settings of RL² that are fixed when the program is compiled: sizes, counts and choices."""

    memory: Literal["gru", "lstm", "linear", "transformer", "counts", "none"] = "gru"
    """The network that remembers. `counts`, of finite MDPs with one-hot states, comes with a policy of its own
    (`graph_actor_critic`), which the sizes below say nothing of; `none` is the control that does not."""
    memory_size: int = 64
    """Width of the memory."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before the memory. What they find in the inputs is shown to the policy and the
    value, too, beside what is remembered: for inputs that mean something only together."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent network's matrix products; bfloat16 is quicker on accelerators."""
    loss: Literal["ppo", "a2c"] = "ppo"
    """The policy's loss; `a2c` takes one step on a batch: set `num_epochs` and
    `num_minibatches` to 1. It has no use for `clip`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recurrent.check(
            self.memory, self.memory_size, self.precision, (*recurrent.MEMORIES, "counts")
        )
        for size in self.encoder_sizes:
            checks.at_least("encoder_sizes", size, 1)
        checks.choice("loss", self.loss, ("ppo", "a2c"))
        if self.loss == "a2c" and (self.num_epochs, self.num_minibatches) != (1, 1):
            raise ValueError(
                f"num_epochs={self.num_epochs} and num_minibatches={self.num_minibatches} must be 1 with "
                "loss='a2c': its gradient is right only where the policy has not moved"
            )


@checks.constructor()
def rl2(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    network: ActorCritic | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> MetaAlgorithm:
    """RL² on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        network: The policy and value with their memory; None builds what ``config`` names: ``memory``,
            ``memory_size``, ``hidden_sizes``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: a value of ``hyper`` is out of range; in ``step``, the number of trials is no multiple
            of ``config.num_minibatches``.
    """
    if network is None and config.memory == "counts":
        network = graph_actor_critic(family)
    elif network is None:
        network = recurrent_actor_critic(family, config)
    objective = {"ppo": learners.recurrent.ppo, "a2c": learners.recurrent.a2c}[config.loss]
    return learners.recurrent.learn_from_trials(
        family, config, hyper, network, Loss(objective), optimizer
    )


@checks.arguments
def recurrent_actor_critic(family: TaskFamily, config: Config) -> ActorCritic:
    """A policy and a value on one memory of all inputs, or of what an encoder finds in them."""
    num_inputs = sum(encodings.input_sizes(family))
    sizes = config.encoder_sizes
    encoder = value_mlp((num_inputs,), sizes[:-1], sizes[-1]) if sizes else None
    memory = recurrent.make(
        config.memory,
        num_inputs=sizes[-1] if sizes else num_inputs,
        size=config.memory_size,
        precision=config.precision,
        context=config.num_episodes * family.horizon,
    )
    num_features = config.memory_size + (sizes[-1] if sizes else 0)
    policy, value = learners.recurrent.heads(num_features, family, config)

    def init(key: jax.Array) -> Params:
        memory_key, policy_key, value_key, *more = jax.random.split(key, 4 if encoder else 3)
        params = {
            "memory": memory.init(memory_key),
            "policy": policy.init(policy_key),
            "value": value.init(value_key),
        }
        if encoder is None:
            return params
        return params | {"encoder": encoder.init(*more)}

    def encoded(params: Params, inputs: Inputs) -> jax.Array:
        x = joined(inputs)
        return jnp.tanh(encoder.apply(params["encoder"], x)) if encoder else x

    def features(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x, y], axis=-1) if encoder else y

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        x = encoded(params, inputs)
        y, state = memory.step(params["memory"], state, x, inputs.reset)
        return policy.apply(params["policy"], features(x, y)), state

    def unroll(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        x = encoded(params, inputs)
        y, _ = memory.unroll(params["memory"], state, x, inputs.reset)
        seen = features(x, y)
        return policy.apply(params["policy"], seen), value.apply(params["value"], seen)

    return ActorCritic(init, memory.initial, step, unroll)
