"""Update rules of agents: LPG and LPO, which are learned, DPO, which was found among learned ones, and A2C, the baseline.

An agent is a policy and a prediction of states. A rule turns experience into targets, and targets into a
loss, which the agent descends:

* `lpg`: both targets come from a recurrent network that reads the trajectory backwards; what the
  prediction means is the rule's own invention. Oh et al. 2020, "Discovering reinforcement learning
  algorithms". It may know how much of an agent's life is over (TA-LPG).
* `lpo`: PPO with its clipping replaced by a learned drift. Lu et al. 2022, "Discovered policy
  optimisation".
* `dpo`: the drift that was read off a learned one, in closed form. From the same paper.
* `a2c`: nothing is learned; the prediction is a value.

DiscoRL reads more than these rules do; its agents are those of `disco`.

A rule sees rewards, terminations, probabilities and predictions and never an observation or an action,
so one that was learned on some family can be followed on any other.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import mean_over_streams, without_broken_streams
from jaxmeta.estimators.units import advantage_scale, in_units, running_reward_scale
from jaxmeta.learners.learned_optimizers import LearnedOptimizer, Progress, dormancies
from jaxmeta.meta_updates.gradients import optimizer_step
from jaxmeta.networks import recurrent
from jaxmeta.networks.distributions import Categorical, Distribution
from jaxmeta.networks.mlp import hidden_activations
from jaxmeta.networks.policies import Policy, action_distributions, default_policy, policy_learner
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Hyper, Learner, Params, Trajectory


class Meta(NamedTuple):
    """The parameters of a rule and the numbers of its agents."""

    params: Params
    """The parameters of the rule; of agents with a learned optimiser ``{"rule": ..., "optimizer": ...}``."""
    hyper: Hyper
    """At least discount, gae_lambda, step_size, prediction_cost, entropy_cost."""


class Agent(NamedTuple):
    """One that learns by a rule."""

    params: Params
    """{"policy": ..., "prediction": ...}."""
    optimizer: Any
    """The optimiser's state."""
    reward_scale: Any = ()
    """``[]``, the scale of its rewards so far, where it learns in units of that."""
    age: Any = ()
    """``[]``, int32: its updates so far, where its rule or its optimiser knows them."""


class Outputs(NamedTuple):
    """The outputs of an agent's networks on one task's trajectories ``[N, T]``."""

    distribution: Distribution
    """The distribution of actions."""
    prediction: jax.Array
    """``[N, T]``, a value; or ``[N, T, m]``, logits of y."""
    next_prediction: jax.Array
    """The same of the true successors."""
    time: Any = ()
    """``[2]``, the share of the agent's life that is over and the logarithm of its length, for rules that read them."""


class RuleHyper(Protocol):
    """The part of an algorithm's `Hyper` that the rules of this file read."""

    @property
    def discount(self) -> float:
        """γ of the agents."""

    @property
    def gae_lambda(self) -> float:
        """λ of their advantages."""

    @property
    def prediction_cost(self) -> float:
        """Weight of the prediction's error."""

    @property
    def entropy_cost(self) -> float:
        """Weight of the policy's entropy."""

    @property
    def policy_target_cost(self) -> float:
        """A rule's charge for the squares of π̂."""

    @property
    def prediction_target_cost(self) -> float:
        """A rule's charge for the squares of ŷ."""

    @property
    def policy_entropy_bonus(self) -> float:
        """A rule's credit for the policy's entropy."""

    @property
    def prediction_entropy_bonus(self) -> float:
        """A rule's credit for the prediction's entropy."""


class UpdateRule(NamedTuple):
    """A rule by which an agent learns from trajectories ``[N, T]``."""

    num_predictions: int | None
    """m, the outputs of the agent's prediction; None is one value."""
    init: Callable[[jax.Array], Params]
    """``(key) -> params`` of the rule."""
    targets: Callable[[Params, Outputs, Trajectory, jax.Array, Any], Any]
    """``(params, outputs, data, good [N], hyper) -> targets``, of the agent that acted. A stream that is not good
    is no part of what targets say of the others; its own are not looked at."""
    loss: Callable[[Params, Outputs, Trajectory, Any, Any], jax.Array]
    """``(params, outputs, data, targets, hyper) -> [N, T]``: the agent descends its mean in the outputs."""
    regularizer: Callable[[Params, Outputs, Trajectory, Any], jax.Array]
    """``(params, outputs, data, hyper) -> [N, T]``: its mean is what the rule is charged for an agent,
    beside its failure."""
    reads_time: bool = False
    """Whether it reads `Outputs.time`."""


AgentOptimizer = Callable[[Any], optax.GradientTransformation]
"""``step_size -> optax.GradientTransformation``."""


@checks.arguments
def rule_learner(
    rule: UpdateRule,
    family: TaskFamily,
    *,
    hidden_sizes: Sequence[int] = (),
    num_epochs: int = 1,
    policy: Policy | None = None,
    optimizer: AgentOptimizer | LearnedOptimizer = optax.sgd,
    rematerialize: bool = True,
    scale_rewards: bool = False,
    lifespan: int | None = None,
) -> "RuleLearner":
    """Agents that follow ``rule`` in tasks of ``family``, which need not be the one it was learned on.

    Args:
        rule: How they learn.
        family: Where the spaces come from.
        hidden_sizes: Layers of the policy and of the prediction, each its own; none makes them linear.
        num_epochs: Steps of the optimiser in an update, all on the same targets.
        policy: The policy; None builds one that fits the action space.
        optimizer: The agents' optimiser; a meta-gradient through Adam needs its ``eps_root`` positive. A learned one, such as
            ``learned_optimizers.open_optimizer()``, has parameters of its own beside the rule's: see `RuleLearner.first_params`.
        rematerialize: Compute an update's intermediate values again in the reverse pass.
        scale_rewards: Show the rule rewards in units of the scale of those that the agent has seen in its
            life: then what it learns does not depend on the unit of rewards.
        lifespan: Updates of a life, for a rule or an optimiser that reads the time of life; else None.

    Raises:
        ValueError: the policy does not fit the family's action space, or the lifespan the rule.
    """
    checks.at_least("num_epochs", num_epochs, 1)
    checks.each_at_least("hidden_sizes", hidden_sizes, 1)
    checks.field("rematerialize", rematerialize, bool)
    checks.field("scale_rewards", scale_rewards, bool)
    if reads_time(rule, optimizer):
        if lifespan is None:
            reader = "rule" if rule.reads_time else "learned optimiser"
            raise ValueError(
                f"lifespan=None must be the updates of a life: the {reader} reads them"
            )
        checks.at_least("lifespan", lifespan, 1)
    elif lifespan is not None:
        raise ValueError(f"lifespan={lifespan!r} has no effect: the rule reads no time of life")
    obs_shape, known = family.observation_shape, policy is None
    if policy is None:
        policy = default_policy("mlp", obs_shape, family.action_space, hidden_sizes)
    prediction = value_mlp(obs_shape, hidden_sizes, rule.num_predictions)
    how = (optimizer, num_epochs, rematerialize, scale_rewards, lifespan, known)
    return RuleLearner(rule, policy, prediction, *how)


def reads_time(rule: UpdateRule, optimizer: AgentOptimizer | LearnedOptimizer) -> bool:
    """Whether agents of ``rule`` with this optimiser need a ``lifespan``."""
    return rule.reads_time or isinstance(optimizer, LearnedOptimizer)


@dataclasses.dataclass(frozen=True)
class RuleLearner:
    """Agents of one family that follow a rule; `rule_learner` explains the fields."""

    rule: UpdateRule
    """The rule that the agents follow."""
    policy: Policy
    """The policy that acts."""
    prediction: Value
    """``obs [..., *obs_shape] -> [...]``, or ``[..., m]``."""
    optimizer: AgentOptimizer | LearnedOptimizer
    """``step_size -> optax.GradientTransformation`` of the agents, or a learned optimiser."""
    num_epochs: int
    """Passes over each batch of experience."""
    rematerialize: bool
    """Whether the backward pass computes intermediate values again."""
    scale_rewards: bool
    """Whether agents see rewards in units of a running scale."""
    lifespan: int | None = None
    """Updates of a life, where the rule or the optimiser reads them."""
    layers_known: bool = True
    """Whether the policy is the default one, whose hidden layers a learned optimiser looks into."""

    @functools.cached_property
    def learner(self) -> Learner:
        """The learner."""
        return policy_learner(
            self.policy,
            init=self.birth,
            params=lambda meta, agent: agent.params["policy"],
            update=jax.checkpoint(self.update) if self.rematerialize else self.update,
            reads=Meta,
        )

    def outputs(self, params: Params, data: Trajectory, age: Any = ()) -> Outputs:
        """The outputs of an agent's ``params`` on ``data [N, T]``; ``age`` is `Agent.age`."""
        return Outputs(
            action_distributions(self.policy, params["policy"], data),
            self.prediction.apply(params["prediction"], data.timestep.obs),
            self.prediction.apply(params["prediction"], data.next_obs),
            () if self.lifespan is None else time_of_life(age, self.lifespan),
        )

    def birth(self, key: jax.Array, meta: Meta) -> Agent:
        """A newborn agent."""
        policy_key, prediction_key = jax.random.split(key)
        params = {
            "policy": self.policy.init(policy_key),
            "prediction": self.prediction.init(prediction_key),
        }
        scale = jnp.zeros(()) if self.scale_rewards else ()
        age = () if self.lifespan is None else jnp.zeros((), jnp.int32)
        if isinstance(self.optimizer, LearnedOptimizer):
            state = self.optimizer.birth(params)
        else:
            state = self.optimizer(meta.hyper.step_size).init(params)
        return Agent(params, state, scale, age)

    def first_params(self, key: jax.Array) -> Params:
        """New `Meta.params`: those of the rule, or of the rule and of a learned optimiser."""
        if not isinstance(self.optimizer, LearnedOptimizer):
            return self.rule.init(key)
        rule_key, optimizer_key = jax.random.split(key)
        return {"rule": self.rule.init(rule_key), "optimizer": self.optimizer.init(optimizer_key)}

    def rule_params(self, meta: Meta) -> Params:
        """The rule's part of ``meta.params``."""
        return meta.params["rule"] if isinstance(self.optimizer, LearnedOptimizer) else meta.params

    def update(self, key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        """The agent after ``num_epochs`` steps down the rule's loss on ``data [N, T]``."""
        rule, outputs, known = self.rule, self.outputs, self.rule_params(meta)
        data, good = without_broken_streams(data)
        if self.scale_rewards:
            counted = jnp.broadcast_to(good[:, None], data.reward.shape)
            scale = running_reward_scale(agent.reward_scale, data.reward, counted)
            agent = agent._replace(reward_scale=scale)
            data = data._replace(reward=in_units(data.reward, scale))
        seen = outputs(agent.params, data, agent.age)
        targets = rule.targets(known, seen, data, good, meta.hyper)
        age = agent.age

        def loss(params: Params) -> jax.Array:
            at_steps = rule.loss(known, outputs(params, data, age), data, targets, meta.hyper)
            return mean_over_streams(at_steps, good)

        def epoch(agent: Agent, at: Any) -> tuple[Agent, None]:
            gradient = jax.grad(loss)(agent.params)
            if isinstance(self.optimizer, LearnedOptimizer):
                own_key, number = at
                return self.learned_step(own_key, number, meta, agent, gradient, data, good), None
            params, state = optimizer_step(
                self.optimizer(meta.hyper.step_size), gradient, agent.optimizer, agent.params
            )
            return agent._replace(params=params, optimizer=state), None

        epochs = None
        if isinstance(self.optimizer, LearnedOptimizer):
            epochs = jax.random.split(key, self.num_epochs), jnp.arange(self.num_epochs)
        agent = jax.lax.scan(epoch, agent, epochs, length=self.num_epochs)[0]
        return agent if self.lifespan is None else agent._replace(age=age + 1)

    def learned_step(
        self,
        key: jax.Array,
        number: jax.Array,
        meta: Meta,
        agent: Agent,
        gradient: Params,
        data: Trajectory,
        good: jax.Array,
    ) -> Agent:
        """The agent after a step of its learned optimiser in the epoch ``number []``, on ``data [N, T]`` of which the ``good [N]``
        streams count."""
        assert isinstance(self.optimizer, LearnedOptimizer)
        assert self.lifespan is not None
        life, epoch = (
            x.astype(jnp.result_type(float)) / length
            for x, length in ((agent.age, self.lifespan), (number, self.num_epochs))
        )
        told = Progress(life, epoch, self.dormancy(agent.params, data, good))
        params, state = self.optimizer.step(
            key,
            meta.params["optimizer"],
            meta.hyper.step_size,
            told,
            gradient,
            agent.optimizer,
            agent.params,
        )
        return agent._replace(params=params, optimizer=state)

    def dormancy(self, params: Params, data: Trajectory, good: jax.Array) -> Params:
        """`Progress.dormancy` of an agent's ``params`` on the ``good [N]`` streams of ``data [N, T]``.

        Of a policy that is not the default one nothing is known: all of its units count as the mean, 1.
        """
        obs = data.timestep.obs.reshape(*data.reward.shape, -1).astype(jnp.result_type(float))
        mean = jax.vmap(mean_over_streams, (-1, None))

        def of(params: Params) -> Params:
            found = hidden_activations(params, obs)
            return dormancies(params, {name: mean(jnp.abs(x), good) for name, x in found.items()})

        unknown = jax.tree.map(jnp.ones_like, params["policy"])
        return {
            "policy": of(params["policy"]) if self.layers_known else unknown,
            "prediction": of(params["prediction"]),
        }


def time_of_life(age: jax.Array, lifespan: int) -> jax.Array:
    """``(age / lifespan, log lifespan)``, ``[2]``, of an agent after ``age []`` updates: TA-LPG's two more inputs."""
    share = age.astype(jnp.result_type(float)) / lifespan
    return jnp.stack([share, jnp.full_like(share, math.log(lifespan))])


class LPGTargets(NamedTuple):
    """The targets that the recurrent network gives."""

    policy: jax.Array
    """π̂ ``[N, T]``: how much more probable the action should be."""
    prediction: Categorical
    """ŷ, logits ``[N, T, m]``."""


def lpg(
    *, num_predictions: int = 16, memory_size: int = 32, time_aware: bool = False
) -> UpdateRule:
    """Learned policy gradient (Oh et al. 2020, eqs. 1 and 2).

    A network reads ``(r_t, d_t, γ, π(a_t|s_t), φ(y_t), φ(y_{t+1}))`` from the end of a stream to its
    start, forgetting all where an episode ends, and says π̂_t and ŷ_t. The agent descends
    ``-log π(a_t|s_t) π̂_t + α KL(y(s_t) ‖ ŷ_t)``, the mean over ``[N, T]``. φ is learned with the rest.

    The regulariser is that of eq. 4, as a cost: minus the entropies of π and y, plus the squared norms of
    π̂ and ŷ.

    Args:
        num_predictions: m, categories of y.
        memory_size: Units of the LSTM.
        time_aware: Read also the share of the agent's life that is over and the logarithm of its length (TA-LPG; Jackson et
            al. 2024, "Discovering temporally-aware reinforcement learning algorithms"), so that a rule may explore early
            and exploit late. Agents then need a ``lifespan``.
    """
    checks.at_least("num_predictions", num_predictions, 1)
    checks.at_least("memory_size", memory_size, 1)
    time_aware = checks.field("time_aware", time_aware, bool)
    memory = recurrent.lstm(memory_size)
    embedding = value_mlp((num_predictions,), (EMBEDDING_SIZE,))
    policy_head = value_mlp((memory_size,), ())
    prediction_head = value_mlp((memory_size,), (), num_predictions)

    def init(key: jax.Array) -> Params:
        memory_key, embedding_key, policy_key, prediction_key = jax.random.split(key, 4)
        return {
            "memory": memory.init(memory_key, 8 if time_aware else 6),
            "embedding": embedding.init(embedding_key),
            "policy": policy_head.init(policy_key),
            "prediction": prediction_head.init(prediction_key),
        }

    def targets(
        params: Params, outputs: Outputs, data: Trajectory, good: jax.Array, hyper: RuleHyper
    ) -> LPGTargets:
        del good  # each stream is read by itself
        return read(params, outputs, data, hyper)

    def read(params: Params, outputs: Outputs, data: Trajectory, hyper: RuleHyper) -> LPGTargets:
        phi = partial(embedding.apply, params["embedding"])
        x = _lpg_inputs(outputs, data, hyper, phi)

        def read_backwards(x: jax.Array, last: jax.Array) -> jax.Array:
            y, _ = memory.unroll(params["memory"], memory.initial(), x[::-1], last[::-1])
            return y[::-1]

        h = jax.vmap(read_backwards)(x, data.last)
        return LPGTargets(
            policy_head.apply(params["policy"], h),
            Categorical(prediction_head.apply(params["prediction"], h)),
        )

    def loss(
        params: Params, outputs: Outputs, data: Trajectory, targets: LPGTargets, hyper: RuleHyper
    ) -> jax.Array:
        log_prob = outputs.distribution.log_prob(data.action)
        divergence = Categorical(outputs.prediction).kl(targets.prediction)
        return hyper.prediction_cost * divergence - log_prob * targets.policy

    def regularizer(
        params: Params, outputs: Outputs, data: Trajectory, hyper: RuleHyper
    ) -> jax.Array:
        pi_hat, y_hat = read(params, outputs, data, hyper)
        return (
            hyper.policy_target_cost * pi_hat**2
            + hyper.prediction_target_cost * jnp.sum(jnp.exp(2 * y_hat.log_probs()), axis=-1)
            - hyper.policy_entropy_bonus * outputs.distribution.entropy()
            - hyper.prediction_entropy_bonus * Categorical(outputs.prediction).entropy()
        )

    return UpdateRule(num_predictions, init, targets, loss, regularizer, time_aware)


def _lpg_inputs(
    outputs: Outputs, data: Trajectory, hyper: RuleHyper, phi: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The inputs of LPG's network ``[N, T, 6]``, or 8 with the time; ``phi`` embeds the probabilities of a prediction."""
    inputs = [
        data.reward,
        data.discount,
        jnp.broadcast_to(hyper.discount, data.reward.shape),
        jnp.exp(outputs.distribution.log_prob(data.action)),
        phi(jax.nn.softmax(outputs.prediction)),
        phi(jax.nn.softmax(outputs.next_prediction)),
        *(jnp.broadcast_to(x, data.reward.shape) for x in outputs.time),
    ]
    return jnp.stack(inputs, axis=-1)


EMBEDDING_SIZE = 16
"""Hidden units of LPG's φ."""


def lpo(*, hidden_size: int = 32) -> UpdateRule:
    """Learned policy optimisation (Lu et al. 2022, section 4): PPO's loop with a learned `drift`.

    The agent descends ``f(r, A) - r A``, with r the ratio of its policy to the one that acted and A the
    advantages over their root mean square, plus the costs of its value's error and of lost entropy.
    Where r is 1 the drift has no gradient, so it speaks from the second step of an update on.
    """
    checks.at_least("hidden_size", hidden_size, 1)

    def init(key: jax.Array) -> Params:
        hidden_key, output_key = jax.random.split(key)
        hidden = jax.random.normal(hidden_key, (8, hidden_size)) / jnp.sqrt(8.0)
        output = jax.random.normal(output_key, (hidden_size,)) / jnp.sqrt(1.0 * hidden_size)
        return {"hidden": hidden, "output": output}

    return _with_drift(init, drift)


def _with_drift(
    init: Callable[[jax.Array], Params],
    drift_of: Callable[[Params, jax.Array, jax.Array], jax.Array],
) -> UpdateRule:
    """The rule whose agents descend ``f(r, A) - r A``; ``drift_of: (params, log r, A) -> f``."""

    def targets(
        params: Params, outputs: Outputs, data: Trajectory, good: jax.Array, hyper: RuleHyper
    ) -> ValueTargets:
        advantage, target = value_targets(outputs, data, hyper)
        counted = jnp.broadcast_to(good[:, None], advantage.shape)
        return ValueTargets(advantage / advantage_scale(advantage, counted), target)

    def loss(
        params: Params, outputs: Outputs, data: Trajectory, targets: ValueTargets, hyper: RuleHyper
    ) -> jax.Array:
        log_ratio = outputs.distribution.log_prob(data.action) - data.log_prob
        gain = jnp.exp(log_ratio) * targets.advantage - drift_of(
            params, log_ratio, targets.advantage
        )
        return _value_and_entropy_cost(outputs, targets, hyper) - gain

    def regularizer(
        params: Params, outputs: Outputs, data: Trajectory, hyper: RuleHyper
    ) -> jax.Array:
        return -hyper.policy_entropy_bonus * outputs.distribution.entropy()

    return UpdateRule(None, init, targets, loss, regularizer)


def drift(params: Params, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """``f(r, A)`` of equal shape, a drift function of mirror learning whatever ``params`` are.

    ``f(1, A) = 0``, ``∂f/∂r (1, A) = 0`` and ``f >= 0`` (Kuba et al. 2022, "Mirror learning"): a network
    without biases of features that vanish at r = 1, less `DRIFT_MARGIN`, cut off at 0 (Lu et al. 2022,
    section 4.2).
    """
    away = -jnp.expm1(log_ratio)  # 1 - r
    x = [away, away**2, log_ratio, log_ratio**2]
    features = jnp.stack([*x, *(feature * advantage for feature in x)], axis=-1)
    return jax.nn.relu(jnp.tanh(features @ params["hidden"]) @ params["output"] - DRIFT_MARGIN)


DRIFT_MARGIN = 1e-6
"""The distance from r = 1 within which a `drift` is zero, in its own units, so that its gradient there is zero."""


def dpo(*, positive_width: float = 2.0, negative_width: float = 0.6) -> UpdateRule:
    """Discovered policy optimisation (Lu et al. 2022, section 5): the loop of `lpo` with a drift in closed form.

    `dpo_drift` is what the authors read off a learned drift. Nothing is learned, and the rule has no parameters.

    Args:
        positive_width: α, how far the ratio moves freely where the advantage is positive.
        negative_width: β, the same where it is negative.
    """
    checks.between("positive_width", positive_width, 1e-6, 1e6)
    checks.between("negative_width", negative_width, 1e-6, 1e6)

    def drift_of(params: Params, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
        return dpo_drift(
            log_ratio, advantage, positive_width=positive_width, negative_width=negative_width
        )

    return _with_drift(lambda key: {}, drift_of)


def dpo_drift(
    log_ratio: jax.Array,
    advantage: jax.Array,
    *,
    positive_width: float = 2.0,
    negative_width: float = 0.6,
) -> jax.Array:
    """``f(r, A)`` of equal shape: ``relu(x - α tanh(x / α))`` with ``x = (r - 1) A`` where A >= 0, else ``relu(y - β tanh(y / β))``
    with ``y = A log r``."""

    def beyond(x: jax.Array, width: float) -> jax.Array:
        return jax.nn.relu(x - width * jnp.tanh(x / width))

    return jnp.where(
        advantage >= 0,
        beyond(jnp.expm1(log_ratio) * advantage, positive_width),
        beyond(log_ratio * advantage, negative_width),
    )


def a2c() -> UpdateRule:
    """Advantage actor-critic (Mnih et al. 2016) with advantages of Schulman et al. 2016; no parameters."""

    def targets(
        params: Params, outputs: Outputs, data: Trajectory, good: jax.Array, hyper: RuleHyper
    ) -> ValueTargets:
        del good  # each stream is read by itself
        return value_targets(outputs, data, hyper)

    def loss(
        params: Params, outputs: Outputs, data: Trajectory, targets: ValueTargets, hyper: RuleHyper
    ) -> jax.Array:
        gain = outputs.distribution.log_prob(data.action) * targets.advantage
        return _value_and_entropy_cost(outputs, targets, hyper) - gain

    def regularizer(
        params: Params, outputs: Outputs, data: Trajectory, hyper: RuleHyper
    ) -> jax.Array:
        return jnp.zeros_like(data.reward)

    return UpdateRule(None, lambda key: {}, targets, loss, regularizer)


class ValueTargets(NamedTuple):
    """Advantages, and the targets of values, ``[N, T]`` each."""

    advantage: jax.Array
    """``[N, T]``, advantages."""
    value: jax.Array
    """Returns of λ."""


def value_targets(outputs: Outputs, data: Trajectory, hyper: RuleHyper) -> ValueTargets:
    """Generalised advantages and λ-returns of an agent whose prediction is a value."""
    found = jax.vmap(partial(advantages_and_targets, lambda_=hyper.gae_lambda))(
        data.reward,
        hyper.discount * data.discount,
        v=outputs.prediction,
        v_next=outputs.next_prediction,
        last=data.last,
    )
    return ValueTargets(*found)


def _value_and_entropy_cost(outputs: Outputs, targets: ValueTargets, hyper: RuleHyper) -> jax.Array:
    """``[N, T]``."""
    error = outputs.prediction - targets.value
    return 0.5 * hyper.prediction_cost * error**2 - hyper.entropy_cost * (
        outputs.distribution.entropy()
    )
