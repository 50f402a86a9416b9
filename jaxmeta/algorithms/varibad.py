r"""VariBAD: a policy that acts on a learned belief about the task.

Zintgraf et al. 2020, "VariBAD: a very good method for Bayes-adaptive deep RL via meta-learning". A recurrent
encoder turns the steps up to t into a posterior over a latent m that stands for the task,
``q(m | τ_:t) = N(μ_t, σ_t²)``. It is trained with decoders of rewards and successors on

$$ELBO_t = E_{m \sim q(m | τ_{:t})} \sum_{i<T} \log p(r_i, s_{i+1} | s_i, a_i, m) - KL(q(m | τ_{:t}) \,\|\, q(m | τ_{:t-1}))$$

(eq. 8 and 9: the past is reconstructed and the future predicted; the first prior is N(0, I)), with weights on
its terms. T counts the steps up to the end of the trial's last episode. Rewards are decoded in the units that
the encoder sees (`learners.recurrent`). PPO trains the policy, which reads the observation and (μ_t, σ_t), and
sends no gradient into the encoder (section 3.3). Both learn from the same trials in the same steps of one
optimiser, so PPO's ratio also holds changes of the belief.

The paper's own form is set by ``Config``. ``replay_trials=...`` keeps the last trials. The encoder and the decoders then have an
optimiser of their own, with ``Hyper(belief_learning_rate=...)``, and learn from kept trials in ``belief_steps`` steps after PPO
(`learners.auxiliary_steps`). ``reward_error="cross_entropy"`` and ``reward_decoder="successor"`` decode whether a reward is positive,
by one logit for each state. The preset ``varibad-gridnavi-published`` has the published numbers, and
`runs.presets` says what differs.

Two settings go beyond the paper. With ``head="hyper"`` the belief makes the weights of the policy (Beck et al. 2023). With
``end_to_end=True`` PPO's gradient reaches the encoder, too. The preset ``varibad-gridnavi-quick`` has both.

HyperX (Zintgraf et al. 2021, "Exploration in approximate hyper-state space for meta reinforcement learning") adds two bonuses to
the rewards that the policy learns from, by ``Config(bonuses=("novelty", "error"))``. ``novelty``: the squared error of a network
that learns to predict the outputs of another one, which is fixed and random, from the observation and the belief after a step
(Burda et al. 2018, "Exploration by random network distillation"). ``error``: the decoders' error on the step just seen, from a latent drawn from the belief after it. Both fall to zero in
``Hyper(bonus_updates=...)``. Their scale is of each batch, where the paper's runs. They make agents explore where rewards are sparse.

    from jaxmeta.networks.recurrent import gru
    algorithm = varibad(family, memory=gru(64))

Use it where an agent must explore and a belief about the task is wanted, too. It costs a decoder of all transitions from each
step's belief. Long trials need many tasks an update.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.varibad import Config, Hyper, varibad

family = tasks.make("gridnavi")
algorithm = varibad(family, Config(num_episodes=2, memory_size=16), Hyper(learning_rate=3e-3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 8, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import optax

from jaxmeta import checks, learners
from jaxmeta.learners.auxiliary_steps import AuxiliarySteps
from jaxmeta.learners.beliefs import (
    COSTS,
    BeliefNetwork,
    Decoder,
    cross_entropy_of_sign,
    squared,
    successors,
)
from jaxmeta.learners.buffers import check_sizes, item_buffer, predicted_bytes
from jaxmeta.learners.recurrent import memory_of
from jaxmeta.learners.trial_gradients import Loss
from jaxmeta.learners.trial_replay import kept_trial
from jaxmeta.meta_updates.outer_loop import Optimizer, outer_optimizer
from jaxmeta.networks import encodings, recurrent
from jaxmeta.networks.actor_critic import ActorCritic, check_network_fits
from jaxmeta.networks.heads import Head, action_head
from jaxmeta.networks.hypernetworks import hyper_head
from jaxmeta.networks.recurrent import Memory
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.trial_gradients.Config):
    """Settings of VariBAD that are fixed when the program is compiled: sizes, counts and choices."""

    hidden_sizes: tuple[int, ...] = (128, 64)
    """Widths of the policy's and the value's hidden layers. They alone learn how to act on a belief."""
    memory: Literal["gru", "lstm", "linear", "transformer"] = "gru"
    """The encoder's recurrent network."""
    memory_size: int = 64
    """Width of the encoder's memory."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the encoder's matrix products, as in `rl2`."""
    head: Literal["plain", "hyper"] = "plain"
    """The policy. With `hyper` the belief makes its weights, and it reads the observation and the time (`networks.hypernetworks`)."""
    policy_sizes: tuple[int, ...] | None = None
    """Widths of the policy's hidden layers; None is `hidden_sizes`."""
    latent_size: int = 8
    """Entries of m."""
    decoder_sizes: tuple[int, ...] = (32,)
    """Widths of the decoders' hidden layers; the last is their rank, unless rewards are decoded from the successor."""
    decodes: tuple[Literal["rewards", "states"], ...] = ("rewards",)
    """The targets that are predicted from the latent: `rewards`, `states` (successors) where the dynamics vary from
    task to task, or both."""
    reward_error: Literal["squared", "cross_entropy"] = "squared"
    """The error of decoded rewards: squared, or the `cross_entropy` of whether a reward is positive. That tells tasks apart only where
    rewards are of two values, and one of them is positive."""
    reward_decoder: Literal["transition", "successor"] = "transition"
    """The input from which a reward is decoded, beside the latent: the whole `transition`, by a network, or its `successor`, of whose
    observation it is a linear function. Of one-hot observations that is a reward for each state, as in the paper."""
    spread: Literal["std", "log_variance"] = "std"
    """How the policy and the value read σ_t; its logarithm falls without bound as a belief sharpens."""
    end_to_end: bool = False
    """PPO's gradient reaches the encoder, too, as in `rl2`; the paper stops it."""
    replay_trials: int = 0
    """The last trials that are kept, for the belief to learn from in gradient steps of its own; 0 learns everything from new trials
    in the same steps. It needs flashbax."""
    replayed_trials: int = 32
    """Kept trials that each of the belief's gradient steps draws, all in memory at a time. It needs `replay_trials`."""
    belief_steps: int = 8
    """The belief's gradient steps in a meta-update. It needs `replay_trials`."""
    bonuses: tuple[Literal["novelty", "error"], ...] = ()
    """HyperX's bonuses for exploration."""
    novelty_sizes: tuple[int, ...] = (256, 256, 128)
    """Widths of the two networks of the bonus `novelty`; the last is of their outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recurrent.check(
            self.memory,
            self.memory_size,
            self.precision,
            [x for x in recurrent.MEMORIES if x != "none"],
        )
        checks.choice("head", self.head, ("plain", "hyper"))
        for size in self.policy_sizes or ():
            checks.at_least("policy_sizes", size, 1)
        checks.at_least("latent_size", self.latent_size, 1)
        checks.distinct("decodes", self.decodes)
        for name in self.decodes:
            checks.choice("decodes", name, ("rewards", "states"))
        if not self.decodes:
            raise ValueError("decodes=() must name 'rewards', 'states' or both")
        if not self.decoder_sizes:
            raise ValueError("decoder_sizes=() must have at least one width")
        for size in self.decoder_sizes:
            checks.at_least("decoder_sizes", size, 1)
        checks.choice("reward_error", self.reward_error, ("squared", "cross_entropy"))
        checks.choice("reward_decoder", self.reward_decoder, ("transition", "successor"))
        checks.choice("spread", self.spread, ("std", "log_variance"))
        if "rewards" not in self.decodes:
            unused = ["reward_error", "reward_decoder"]
            checks.ignored(self, unused, f"with decodes={self.decodes!r}")
        checks.at_least("replay_trials", self.replay_trials, 0)
        if self.replay_trials:
            check_sizes(self.replay_trials, self.replayed_trials)
            checks.at_least("belief_steps", self.belief_steps, 1)
            checks.ignored(self, ["end_to_end"], f"with replay_trials={self.replay_trials}")
        else:
            checks.ignored(self, ["replayed_trials", "belief_steps"], "with replay_trials=0")
        checks.distinct("bonuses", self.bonuses)
        for bonus in self.bonuses:
            checks.choice("bonuses", bonus, ("novelty", "error"))
        if "novelty" not in self.bonuses:
            checks.ignored(self, ["novelty_sizes"], f"with bonuses={self.bonuses!r}")
        if not self.novelty_sizes:
            raise ValueError("novelty_sizes=() must have at least one width")
        for size in self.novelty_sizes:
            checks.at_least("novelty_sizes", size, 1)


class Hyper(NamedTuple):
    """Numbers of VariBAD: the numbers of `learners.trial_gradients.Hyper` and the weights of the ELBO's terms."""

    discount: float = 0.99
    """γ of the advantages."""
    gae_lambda: float = 0.95
    """λ of the advantages."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step sizes and the weight of the entropy fall to zero."""
    max_grad_norm: float = 1.0
    """Clips the norm of each optimiser's gradient."""
    clip: float = 0.2
    """ε of PPO."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy."""
    value_cost: float = 0.5
    """Weight of the squared error of values."""
    reward_cost: float = 10.0
    """Weight of the error of rewards: squared and in units of their running scale, or a cross-entropy in nats."""
    state_cost: float = 1.0
    """Weight of the squared error of successors, a mean over their entries."""
    kl_cost: float = 0.1
    """Weight of the divergence of a posterior from the one before, in nats."""
    novelty_bonus: float = 1.0
    """Weight of the bonus `novelty`, in units of rewards; a bonus's discounted sums have a standard deviation of 1."""
    error_bonus: float = 1.0
    """Weight of the bonus `error`."""
    bonus_updates: float = math.inf
    """Meta-updates in which the weights of the bonuses fall to zero in a straight line."""
    belief_learning_rate: float = 1e-3
    """Step size of the belief's own optimiser, a gradient step. It needs `Config.replay_trials`."""


@checks.constructor(
    novelty_bonus=(0.0, 1e6), error_bonus=(0.0, 1e6), bonus_updates=(1e-6, math.inf)
)
def varibad(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    head: Callable[[int], Head] | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """VariBAD on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``, as in `rl2`.
        memory: The encoder's recurrent network, for example ``gru(64)``; None makes the one that
            ``config`` names.
        head: ``(num_features) -> Head``, the policy, for example a ``hyper_head``. Its features are the observation, the time and
            the belief, which is the last ``2 * config.latent_size``. None makes the one that ``config`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ImportError: ``config.replay_trials`` is set and flashbax is not installed.
        ValueError: a value of ``hyper`` is out of range; a setting has no effect beside the others; ``head`` does not fit the
            family; the buffer takes more memory than the device has; in ``step``, the number of trials is no multiple of
            ``config.num_minibatches`` or greater than ``config.replay_trials``.
    """
    unused = [cost for target, cost in COSTS.items() if target not in config.decodes]
    checks.ignored(hyper, unused, f"with decodes={config.decodes!r}")
    unused = [f"{name}_bonus" for name in ("novelty", "error") if name not in config.bonuses]
    unused += [] if config.bonuses else ["bonus_updates"]
    checks.ignored(hyper, unused, f"with bonuses={config.bonuses!r}")
    network, parts = belief_actor_critic(family, config, memory, head)
    loss = Loss(learners.trial_gradients.ppo, parts.loss, parts.bonus if config.bonuses else None)
    learn = learners.trial_gradients.learn_from_trials
    if not config.replay_trials:
        checks.ignored(hyper, ["belief_learning_rate"], "with replay_trials=0")
        return learn(family, config, hyper, network, loss, optimizer)
    loss, policy_optimizer = loss._replace(auxiliary=None), _of(optimizer, belief=False)
    return learn(
        family,
        config,
        hyper,
        network,
        loss,
        policy_optimizer,
        _belief_steps(family, config, hyper, network, parts, optimizer),
    )


def replay_bytes(
    family: TaskFamily,
    config: Config,
    *,
    memory: Memory | None = None,
    head: Callable[[int], Head] | None = None,
) -> int:
    """The bytes that the buffer of ``config.replay_trials`` trials takes, before it is made."""
    network, _ = belief_actor_critic(family, config, memory, head)
    return predicted_bytes(_kept_trial(family, config, Hyper(), network), config.replay_trials)


def _kept_trial(
    family: TaskFamily, config: Config, hyper: Hyper, network: ActorCritic
) -> tuple[Trajectory, jax.Array]:
    acting = learners.recurrent_learner(family, config, network)
    first_meta = partial(learners.trial_gradients.first_meta, network=network, hyper=hyper)
    return kept_trial(family, acting, first_meta, successors=True)


def _belief_steps(
    family: TaskFamily,
    config: Config,
    hyper: Hyper,
    network: ActorCritic,
    parts: BeliefNetwork,
    optimizer: Optimizer,
) -> AuxiliarySteps:
    """The belief's gradient steps on kept trials."""
    buffer = item_buffer(
        _kept_trial(family, config, hyper, network),
        config.replay_trials,
        config.replayed_trials,
        name="replay_trials",
    )

    def own(hyper: Hyper) -> optax.GradientTransformation:
        hyper = hyper._replace(learning_rate=hyper.belief_learning_rate)
        return outer_optimizer(_of(optimizer, belief=True), hyper)

    return AuxiliarySteps(parts.loss, buffer, own, config.belief_steps)


def _of(optimizer: Optimizer, *, belief: bool) -> Optimizer:
    """``optimizer`` of the parameters of the belief, or of the policy and the value, alone. The others must have no gradient."""

    def chosen(params: Params) -> Params:
        return {name: (name not in ("policy", "value")) == belief for name in params}

    return lambda learning_rate: optax.masked(optimizer(learning_rate), chosen)


@checks.arguments
def belief_actor_critic(
    family: TaskFamily,
    config: Config,
    memory: Memory | None = None,
    head: Callable[[int], Head] | None = None,
) -> tuple[ActorCritic, BeliefNetwork]:
    """A policy and a value on a belief, and the parts whose methods are its loss on one trial, `Loss.auxiliary`, and its bonuses, `Loss.bonus`.

    `varibad` explains ``memory`` and ``head``.
    """
    obs_size, past_size, time_size = encodings.input_sizes(family)
    encoder = memory_of(family, config, memory)
    num_features = obs_size + time_size + 2 * config.latent_size
    *hidden, rank = config.decoder_sizes
    cause_size = obs_size + past_size - 1
    code = value_mlp((config.latent_size,), hidden, rank)
    error = squared if config.reward_error == "squared" else cross_entropy_of_sign
    features = value_mlp((cause_size + obs_size,), hidden, rank)
    rewards = Decoder(code, features, rank, error)
    if config.reward_decoder == "successor":
        per_entry = value_mlp((config.latent_size,), config.decoder_sizes, obs_size)
        rewards = Decoder(per_entry, successors(obs_size, obs_size), obs_size, error)
    states = Decoder(code, value_mlp((cause_size,), hidden, rank * obs_size), rank)
    decoders = {"rewards": rewards, "states": states}
    network = BeliefNetwork(
        family,
        encoder,
        posterior=value_mlp((encoder.size,), (), 2 * config.latent_size),
        policy=_policy(family, config, num_features, head),
        value=value_mlp((num_features,), config.hidden_sizes),
        decoders={name: decoders[name] for name in config.decodes},
        spread=config.spread,
        end_to_end=config.end_to_end,
        bonuses=config.bonuses,
        novelty=_novelty(config, obs_size) if "novelty" in config.bonuses else None,
    )
    actor_critic = ActorCritic(network.init, encoder.initial, network.step, network.unroll)
    if head is not None:
        check_network_fits(family, actor_critic, name="head")
    return actor_critic, network


def _policy(
    family: TaskFamily, config: Config, num_features: int, head: Callable[[int], Head] | None
) -> Head:
    if head is not None:
        checks.ignored(config, ["head", "policy_sizes"], "with the argument head=")
        return head(num_features)
    sizes = config.hidden_sizes if config.policy_sizes is None else config.policy_sizes
    if config.head == "plain":
        return action_head(num_features, family.action_space, sizes)
    return hyper_head(num_features, family.action_space, 2 * config.latent_size, sizes)


def _novelty(config: Config, obs_size: int) -> Value:
    *hidden, size = config.novelty_sizes
    return value_mlp((obs_size + 2 * config.latent_size,), hidden, size)
