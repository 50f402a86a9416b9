"""RL²: a recurrent policy learns a task in its memory, which lasts through all episodes of a trial.

Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning", and Wang et al. 2016,
"Learning to reinforcement learn". The network sees the observation, the previous action and reward and
whether an episode begins. It is trained for the return of whole trials by PPO (Duan et al. used TRPO) or
A2C (Wang et al.). `networks.recurrent` holds the networks, and `learners.recurrent` the trials, the losses `ppo` and `a2c`, and
the loop of training: act in trials, compute advantages over each trial, learn in epochs of minibatches.

Use it for an agent that explores and remembers within a trial. Learning runs through whole trials, so long trials need many tasks an
update. It takes no gradient step at test time.

```python
import jax
from jaxmeta import evaluation, references, tasks
from jaxmeta.algorithms.rl2 import Hyper, rl2
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
hyper = Hyper(learning_rate=3e-3, discount=1.0, gae_lambda=0.9, anneal_updates=200)
algorithm = rl2(family, hyper=hyper, memory=gru(32))
run = training.train(algorithm, family, training.Config(meta_updates=200, num_tasks=1024))

held_out = tasks.sample_tasks(jax.random.key(1), family, 10_000, split="test")
trials = evaluation.trials(
    jax.random.key(2),
    run.state.meta,
    held_out,
    learner=algorithm.learner,
    env=family.env,
    num_steps=family.horizon,
)
print(trials.reward.sum(axis=1).mean(), references.bayes_optimal_bandit(num_arms=5, num_pulls=10))
```
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import optax

from jaxmeta import checks, learners
from jaxmeta.learners.recurrent import MEMORY_SETTINGS, given_network, memory_of
from jaxmeta.learners.trial_gradients import Hyper, Loss, PolicyLoss, a2c, ppo
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import (
    ActorCritic,
    check_network_fits,
    recurrent_actor_critic,
)
from jaxmeta.networks.graph_actor_critic import graph_actor_critic
from jaxmeta.networks.hypernetworks import hyper_head, split_aggregation
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm

LOSSES: dict[str, PolicyLoss] = {"ppo": ppo, "a2c": a2c}
"""The losses by the names of `Config.loss`."""
NETWORK_SETTINGS = (*MEMORY_SETTINGS, "encoder_sizes", "hidden_sizes", "head", "aggregation")
"""The settings that name a network."""


@dataclasses.dataclass(frozen=True)
class Config(learners.trial_gradients.Config):
    """Settings of RL² that are fixed when the program is compiled: sizes, counts and choices."""

    memory: Literal["gru", "lstm", "linear", "transformer", "counts", "none"] = "gru"
    """The recurrent network. `counts`, for finite MDPs with one-hot states, is a whole policy
    (`graph_actor_critic`) without sizes; `none` is a control without memory."""
    memory_size: int = 64
    """Width of the memory."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before the memory. The policy and the value read their output, too, beside
    the memory. They help if inputs mean something only together."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent network's matrix products; bfloat16 is quicker on accelerators."""
    head: Literal["plain", "hyper"] = "plain"
    """The policy's last part. With `hyper` the memory's output makes its weights, and it reads the encoder's, so that
    `encoder_sizes` must be set (`networks.hypernetworks`)."""
    aggregation: Literal["none", "max"] = "none"
    """With `max` half of the memory's output is its largest values so far, as in SplAgger."""
    loss: Literal["ppo", "a2c"] = "ppo"
    """The policy's loss. `a2c` takes one step on a batch: set `num_epochs` and `num_minibatches` to 1. It
    ignores `clip`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recurrent.check(
            self.memory, self.memory_size, self.precision, (*recurrent.MEMORIES, "counts")
        )
        for size in self.encoder_sizes:
            checks.at_least("encoder_sizes", size, 1)
        checks.choice("loss", self.loss, LOSSES)
        checks.choice("head", self.head, ("plain", "hyper"))
        checks.choice("aggregation", self.aggregation, ("none", "max"))
        if self.head == "hyper" and not self.encoder_sizes:
            raise ValueError("head='hyper' reads the encoder's output: set encoder_sizes")
        if self.memory == "counts":
            sizes = [name for name in NETWORK_SETTINGS if name != "memory"]
            checks.ignored(self, sizes, "with memory='counts'")
        if self.loss == "a2c":
            _check_one_step(self)


@checks.constructor()
def rl2(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    network: ActorCritic | None = None,
    loss: PolicyLoss | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> MetaAlgorithm:
    """RL² on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        memory: The recurrent network, for example ``gru(64)``; None makes the one that ``config`` names.
        network: The policy and the value with their memory, for example ``graph_actor_critic(family)``;
            None puts a policy and a value on ``memory``.
        loss: The policy's loss: ``ppo``, ``a2c`` or your own; None is the one that ``config`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: a value of ``hyper`` is out of range; a setting has no effect beside the others; in
            ``step``, the number of trials is no multiple of ``config.num_minibatches``.
    """
    network = network_of(family, config, memory, network)
    if loss is None:
        loss = LOSSES[config.loss]
    else:
        checks.ignored(config, ["loss"], "with the argument loss=")
    if loss is a2c:
        _check_one_step(config)
        checks.ignored(hyper, ["clip"], "with loss='a2c'")
    return learners.trial_gradients.learn_from_trials(
        family, config, hyper, network, Loss(loss), optimizer
    )


def network_of(
    family: TaskFamily,
    config: Config,
    memory: Memory | None = None,
    network: ActorCritic | None = None,
) -> ActorCritic:
    """``network``, or a policy and a value on ``memory``, or on the memory that ``config`` names.

    Raises:
        ValueError: ``memory`` or a setting of ``config`` has no effect beside ``network``.
    """
    if network is not None:
        how: dict[str, Any] = dict(settings=NETWORK_SETTINGS, check_fits=check_network_fits)
        return given_network(family, config, memory, network, **how)
    if memory is None and config.memory == "counts":
        return graph_actor_critic(family)
    memory = memory_of(family, config, memory)
    if config.aggregation == "max":
        memory = split_aggregation(memory)
    head = partial(
        hyper_head,
        action_space=family.action_space,
        memory_size=memory.size,
        hidden_sizes=config.hidden_sizes,
    )
    return recurrent_actor_critic(
        family,
        memory,
        encoder_sizes=config.encoder_sizes,
        hidden_sizes=config.hidden_sizes,
        head=head if config.head == "hyper" else None,
    )


def _check_one_step(config: learners.trial_gradients.Config) -> None:
    if (config.num_epochs, config.num_minibatches) != (1, 1):
        raise ValueError(
            f"num_epochs={config.num_epochs} and num_minibatches={config.num_minibatches} must be 1 with "
            "loss='a2c': its gradient is right only at the policy that acted"
        )
