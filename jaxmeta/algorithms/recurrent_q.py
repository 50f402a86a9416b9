r"""Recurrent Q-learning: action values on a memory that lasts through all episodes of a trial, with and without replay.

The learner learns a task in its memory, as in `rl2`: a recurrent network reads observations, previous actions
and rewards, and the values Q(history, action) of a trial's return are a linear function of its features. The learner acts
by the best action, in training with probability ε by a random one, and at a temperature τ > 0 by draws from softmax(Q / τ). Values are learned by PQN (Gallici et al. 2024,
"Simplifying deep temporal difference learning"): the error to λ-returns

$$G_t = r_t + γ [(1 - λ) \max_a Q_{t+1}(a) + λ G_{t+1}], \quad G_{T-1} = r_{T-1},$$

$$L = ½ \mathrm{mean}_t (Q_t(a_t) - \mathrm{sg}[G_t])^2,$$

which every minibatch computes anew by the network that it changes, on whole trials from an empty memory. There is no target
network; layer normalisation in the head keeps learning stable. As in `rl2`, values cross the ends of episodes, and a trial
ends with its last step.

PQN is on-policy. With ``Config(replay_trials=...)`` the algorithm's state holds the last so many trials, and each
minibatch learns from some of them beside the new ones (`learners.buffers`). Where an old trial took an action that is not
the best today, its λ-return is of another policy: ``trace="watkins"`` cuts it there (Watkins 1989), and
``trace="peng"``, the equation above, does not (Peng & Williams 1996).

Use it for an agent that explores and remembers within a trial, with discrete actions, and to learn from old trials again.
Learning from old trials takes memory (`replay_bytes`) and, as a rule, more gradient steps a trial than `rl2` takes.

```python
import jax
from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.recurrent_q import Config, Hyper, recurrent_q
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
config = Config(num_epochs=2, replay_trials=4096, replayed_trials=64)
hyper = Hyper(discount=1.0, learning_rate=3e-3, epsilon_updates=50, anneal_updates=100)
algorithm = recurrent_q(family, config, hyper, memory=gru(32))
run = training.train(algorithm, family, training.Config(meta_updates=100, num_tasks=256))

held_out = tasks.sample_tasks(jax.random.key(1), family, 10_000, split="test")
how = dict(learner=algorithm.learner, env=family.env, num_steps=family.horizon)
trials = evaluation.trials(jax.random.key(2), run.state.meta, held_out, **how)
print(trials.reward.sum(axis=1).mean())  # 5 is random, 6.66 Bayes-optimal
```
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators.units import running_reward_scale
from jaxmeta.learners.action_values import (
    TRACES,
    exploring,
    lambda_returns,
    scheduled,
    unrolled,
    value_error,
)
from jaxmeta.learners.buffers import check_sizes, item_buffer, predicted_bytes
from jaxmeta.learners.minibatches import Counts, in_chunks, learn_in_epochs
from jaxmeta.learners.recurrent import (
    MEMORY_SETTINGS,
    Meta,
    RecurrentLearner,
    counted_steps,
    given_network,
    memory_of,
    moved_value_scale,
    step_metrics,
    trial_learner,
)
from jaxmeta.learners.trial_replay import Batch, State, batch_of, kept, kept_trial, remembered
from jaxmeta.meta_updates.outer_loop import Optimizer, outer_optimizer
from jaxmeta.networks import recurrent
from jaxmeta.networks.action_values import (
    ActionValues,
    check_values_fit,
    epsilon_greedy,
    num_discrete_actions,
    recurrent_action_values,
)
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import MetaAlgorithm, Params, Task

NETWORK_SETTINGS = (*MEMORY_SETTINGS, "encoder_sizes", "hidden_sizes")
"""The settings that name a network."""


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.EpochConfig):
    """Settings of recurrent Q-learning that are fixed when the program is compiled: sizes, counts and choices."""

    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the layers between the memory and the values, with layer normalisation before a ReLU."""
    memory: Literal["gru", "lstm", "linear", "transformer", "none"] = "gru"
    """The recurrent network; `none` is a control without memory."""
    memory_size: int = 64
    """Width of the memory."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before the memory, as in `rl2`."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent network's matrix products, as in `rl2`."""
    trace: Literal["peng", "watkins"] = "peng"
    """Whether a λ-return goes on through actions that are not the best: `peng`, or is cut there: `watkins`."""
    replay_trials: int = 0
    """The last trials that are kept; 0 learns on-policy, from new trials alone."""
    replayed_trials: int = 32
    """Kept trials that a minibatch draws and learns from beside its new ones. It needs `replay_trials`."""

    @property
    def num_replayed(self) -> int:
        """Old trials beside the new ones in each minibatch."""
        return self.replayed_trials if self.replay_trials else 0

    def check_devices(self, num_devices: int) -> None:
        """Warns unless ``num_devices`` devices share learning; with replay they never do."""
        if not self.replay_trials:
            super().check_devices(num_devices)

    def __post_init__(self) -> None:
        super().__post_init__()
        recurrent.check(self.memory, self.memory_size, self.precision)
        for size in self.encoder_sizes:
            checks.at_least("encoder_sizes", size, 1)
        checks.choice("trace", self.trace, TRACES)
        checks.at_least("replay_trials", self.replay_trials, 0)
        if self.replay_trials == 0:
            checks.ignored(self, ["replayed_trials"], "with replay_trials=0")
        else:
            check_sizes(self.replay_trials, self.replayed_trials)


class Hyper(NamedTuple):
    """Numbers of recurrent Q-learning, each a float or an array ``[]``; a run can sweep or schedule them."""

    discount: float = 0.99
    """γ."""
    trace_lambda: float = 0.95
    """λ of the returns that values are learned from."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size falls to zero in a straight line; infinite keeps it."""
    max_grad_norm: float = 1.0
    """Clips the norm of the gradient of all parameters together."""
    first_epsilon: float = 1.0
    """ε in the first meta-update: the probability of a random action in training."""
    last_epsilon: float = 0.05
    """ε after `epsilon_updates`."""
    first_temperature: float = 0.0
    """τ in the first meta-update, in units of the returns' spread: where no random action is taken, actions are drawn from
    softmax(Q / τ), so that those that are nearly as good as the best are tried most. 0 takes the best."""
    last_temperature: float = 0.0
    """τ after `epsilon_updates`."""
    diversity: float = 0.0
    """How far the tasks of a meta-update differ in exploration, from 0 to 1: ε and τ of training are times factors from
    1 - diversity at the first task to 1 + diversity at the last. With 1 some trials show what the best actions earn
    while others try what these leave out. 0 explores alike in all. Sampling for
    learnability (`curricula.sfl`) puts its kept tasks first, so these explore least."""
    epsilon_updates: float = 100.0
    """Meta-updates in which ε and τ fall from the first to the last in a straight line."""
    epsilon: float = 0.0
    """ε outside of training, in evaluation and deployment: 0 takes the best action always."""
    temperature: float = 0.0
    """τ outside of training."""


_SHARED: Any = Hyper(*[None] * len(Hyper._fields))  # type: ignore[arg-type]
_AXES: Any = dict.fromkeys(Meta._fields) | {"hyper": _SHARED._replace(epsilon=0, temperature=0)}
EXPLORING = Meta(**_AXES)
"""The axes of ``meta`` while acting in training: each task has its ε and τ."""


@checks.constructor(
    diversity=(0.0, 1.0),
    first_epsilon=(0.0, 1.0),
    last_epsilon=(0.0, 1.0),
    epsilon_updates=(1e-6, math.inf),
    epsilon=(0.0, 1.0),
    first_temperature=(0.0, 1e6),
    last_temperature=(0.0, 1e6),
    temperature=(0.0, 1e6),
)
def recurrent_q(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    network: ActionValues | None = None,
    optimizer: Optimizer = optax.radam,
) -> MetaAlgorithm:
    """Recurrent Q-learning on a family of tasks with discrete actions.

    The learner's ``log_prob`` is of its ε-greedy policy (`networks.action_values.epsilon_greedy`): with ``hyper.epsilon``
    of 0 it is 0 at the best action. In training trials are recorded with training's ε. A trial with a number in its counted steps that is not finite is
    left out, also of the buffer, and counted in ``skipped_tasks``; a minibatch without a good new trial changes nothing.
    Several devices share the work as in `rl2`. With replay they share acting alone: each device holds the whole buffer.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different values can be
            vmapped.
        memory: The recurrent network, for example ``gru(64)``; None makes the one that ``config`` names.
        network: The action values with their memory; None puts them on ``memory``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ImportError: ``config.replay_trials`` is set and flashbax is not installed.
        ValueError: the family's actions are not discrete; a value of ``hyper`` is out of range; a setting has no effect
            beside the others; the buffer takes more memory than the device has; in ``step``, the number of trials is no
            multiple of ``config.num_minibatches`` or greater than ``config.replay_trials``.
    """
    network = network_of(family, config, memory, network)
    parts = _learner_of(family, config, network)
    buffer = None
    if config.replay_trials:
        buffer = item_buffer(
            kept_trial(family, parts, partial(first_meta, network=network, hyper=hyper)),
            config.replay_trials,
            config.replayed_trials,
            name="replay_trials",
        )

    def init(key: jax.Array, hyper: Any = hyper) -> State:
        meta = first_meta(key, network, hyper)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        replay = buffer.init() if buffer else ()
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32), replay)

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        act_key, learn_key = jax.random.split(quick(key))
        hyper = scheduled(state.meta.hyper, state.num_updates)
        acting = state.meta._replace(hyper=exploring(hyper, jax.tree.leaves(tasks)[0].shape[0]))
        recorded = parts.trials(act_key, acting, tasks, meta_axes=EXPLORING)
        data, counted = counted_steps(recorded, config.num_episodes)
        make = partial(batch_of, state.meta, parts=parts)
        replay, replayed = remembered(state.replay, buffer, kept(data, counted), make)
        batch = make(data, counted)
        meta = with_scales(state.meta, batch, hyper, network=network, config=config)
        learned, reports, applied = learn_in_epochs(
            learn_key,
            (meta.params, state.optimizer),
            batch,
            hyper,
            losses=partial(
                value_loss, value_scale=meta.value_scale, network=network, config=config
            ),
            optimizer=outer_optimizer(optimizer, hyper),
            config=config,
            replayed=replayed,
        )
        metrics = step_metrics(reports, applied, recorded, counted, config.num_episodes)
        metrics["epsilon"] = hyper.epsilon
        if buffer:
            metrics["replay_trials"] = buffer.size(replay)
        done = state.num_updates + 1 - metrics["skipped_updates"]
        params, optimizer_state = learned
        return State(meta._replace(params=params), optimizer_state, done, replay), metrics

    return MetaAlgorithm(init, step, parts.learner, parts.lifetime)


def network_of(
    family: TaskFamily,
    config: Config,
    memory: Memory | None = None,
    network: ActionValues | None = None,
) -> ActionValues:
    """``network``, or action values on ``memory``, or on the memory that ``config`` names.

    Raises:
        ValueError: the family's actions are not discrete; ``memory`` or a setting of ``config`` has no effect beside
            ``network``.
    """
    num_discrete_actions("recurrent_q", family)
    if network is not None:
        how: dict[str, Any] = dict(settings=NETWORK_SETTINGS, check_fits=check_values_fit)
        return given_network(family, config, memory, network, **how)
    return recurrent_action_values(
        family,
        memory_of(family, config, memory),
        encoder_sizes=config.encoder_sizes,
        hidden_sizes=config.hidden_sizes,
    )


def replay_bytes(
    family: TaskFamily,
    config: Config,
    *,
    memory: Memory | None = None,
    network: ActionValues | None = None,
) -> int:
    """The bytes that the buffer of ``config.replay_trials`` trials takes, before it is made. It grows with observations and steps."""
    network = network_of(family, config, memory, network)
    parts = _learner_of(family, config, network)
    item = kept_trial(family, parts, partial(first_meta, network=network, hyper=Hyper()))
    return predicted_bytes(item, config.replay_trials)


def first_meta(key: jax.Array, network: ActionValues, hyper: Hyper) -> Meta:
    """The meta of a run before its first meta-update."""
    hyper = jax.tree.map(lambda x: jnp.asarray(x, float), hyper)
    return Meta(network.init(key), jnp.zeros(2), jnp.zeros(()), hyper)


def value_loss(
    params: Params,
    keys: jax.Array,
    batch: Batch,
    hyper: Any,
    whole: Counts,
    *,
    value_scale: jax.Array,
    network: ActionValues,
    config: Config,
) -> tuple[jax.Array, dict]:
    """``(loss [], report)``, the share of some trials in half a minibatch's mean squared error to λ-returns, in units of the returns' spread."""
    del keys
    q = unrolled(params, batch.inputs, network)
    loss = value_error(q, batch, value_scale, hyper, trace=config.trace, divisor=whole.steps)
    return loss, {"value_loss": loss}


def with_scales(
    meta: Meta, batch: Batch, hyper: Any, *, network: ActionValues, config: Config
) -> Meta:
    """``meta`` with the running scales of returns and rewards moved by new trials."""
    q = in_chunks(
        lambda inputs: network.unroll(meta.params, network.initial(), inputs),
        batch.inputs,
        trials_per_chunk=config.trials_per_chunk,
    )
    returns = lambda_returns(q, batch, meta.value_scale, hyper, config.trace)
    return meta._replace(
        value_scale=moved_value_scale(meta.value_scale, returns, batch.counted),
        reward_scale=running_reward_scale(meta.reward_scale, batch.reward, batch.counted),
    )


def _learner_of(family: TaskFamily, config: Config, network: ActionValues) -> RecurrentLearner:
    return trial_learner(family, config, network.initial, partial(_choose, network))


def _choose(
    network: ActionValues, meta: Meta, state: Any, inputs: Inputs
) -> tuple[Categorical, Any]:
    q, state = network.step(meta.params, state, inputs)
    return epsilon_greedy(q, meta.hyper.epsilon, meta.hyper.temperature), state
