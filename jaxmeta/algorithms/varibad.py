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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators.streams import count
from jaxmeta.learners.recurrent import memory_of
from jaxmeta.learners.trial_gradients import Loss
from jaxmeta.networks import encodings, recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined
from jaxmeta.networks.distributions import DiagGaussian, Distribution
from jaxmeta.networks.heads import Head, action_head
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
    latent_size: int = 8
    """Entries of m."""
    decoder_sizes: tuple[int, ...] = (32,)
    """Widths of the decoders' hidden layers; the last is their rank."""
    decodes: tuple[Literal["rewards", "states"], ...] = ("rewards",)
    """The targets that are predicted from the latent: `rewards`, `states` (successors) where the dynamics vary from
    task to task, or both."""
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
    """Meta-updates in which the step size and the weight of the entropy fall to zero."""
    max_grad_norm: float = 1.0
    """Clips the norm of the gradient."""
    clip: float = 0.2
    """ε of PPO."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy."""
    value_cost: float = 0.5
    """Weight of the squared error of values."""
    reward_cost: float = 10.0
    """Weight of the squared error of rewards, in units of their running scale."""
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


COSTS = {"rewards": "reward_cost", "states": "state_cost"}
"""The weight of each decoded target."""


@checks.constructor(
    novelty_bonus=(0.0, 1e6), error_bonus=(0.0, 1e6), bonus_updates=(1e-6, math.inf)
)
def varibad(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> MetaAlgorithm:
    """VariBAD on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``, as in `rl2`.
        memory: The encoder's recurrent network, for example ``gru(64)``; None makes the one that
            ``config`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: a value of ``hyper`` is out of range; a setting has no effect beside the others; in
            ``step``, the number of trials is no multiple of ``config.num_minibatches``.
    """
    unused = [cost for target, cost in COSTS.items() if target not in config.decodes]
    checks.ignored(hyper, unused, f"with decodes={config.decodes!r}")
    unused = [f"{name}_bonus" for name in ("novelty", "error") if name not in config.bonuses]
    unused += [] if config.bonuses else ["bonus_updates"]
    checks.ignored(hyper, unused, f"with bonuses={config.bonuses!r}")
    network, parts = belief_actor_critic(family, config, memory)
    loss = Loss(learners.trial_gradients.ppo, parts.loss, parts.bonus if config.bonuses else None)
    return learners.trial_gradients.learn_from_trials(
        family, config, hyper, network, loss, optimizer
    )


@checks.arguments
def belief_actor_critic(
    family: TaskFamily, config: Config, memory: Memory | None = None
) -> tuple[ActorCritic, "_BeliefNetwork"]:
    """A policy and a value on a belief, and what has its loss on one trial, `Loss.auxiliary`, and its bonuses, `Loss.bonus`."""
    obs_size, past_size, time_size = encodings.input_sizes(family)
    encoder = memory_of(family, config, memory)
    num_features = obs_size + time_size + 2 * config.latent_size
    *hidden, rank = config.decoder_sizes
    cause_size = obs_size + past_size - 1
    features = {
        "rewards": value_mlp((cause_size + obs_size,), hidden, rank),
        "states": value_mlp((cause_size,), hidden, rank * obs_size),
    }
    code = value_mlp((config.latent_size,), hidden, rank)
    network = _BeliefNetwork(
        family,
        encoder,
        posterior=value_mlp((encoder.size,), (), 2 * config.latent_size),
        policy=action_head(num_features, family.action_space, config.hidden_sizes),
        value=value_mlp((num_features,), config.hidden_sizes),
        decoders={name: _Decoder(code, features[name], rank) for name in config.decodes},
        novelty=_novelty(config, obs_size) if "novelty" in config.bonuses else None,
        bonuses=config.bonuses,
    )
    actor_critic = ActorCritic(network.init, encoder.initial, network.step, network.unroll)
    return actor_critic, network


def _novelty(config: Config, obs_size: int) -> Value:
    *hidden, size = config.novelty_sizes
    return value_mlp((obs_size + 2 * config.latent_size,), hidden, size)


class _Decoder(NamedTuple):
    """A prediction about transitions from the latent: a product of a code of the latent and features of a transition.

    The posteriors of all steps are compared with all transitions, T² pairs. With the product each network
    runs only T times.
    """

    code: Value
    features: Value
    rank: int

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        code_key, features_key = jax.random.split(key)
        return {"code": self.code.init(code_key), "features": self.features.init(features_key)}

    def apply(self, params: Params, m: jax.Array, transitions: jax.Array) -> jax.Array:
        """Predictions ``[T, T, D]`` from each of the latents ``m [T, L]`` about each of ``transitions [T, F]``."""
        return jnp.einsum("tr,iro->tio", *self._factors(params, m, transitions))

    def each(self, params: Params, m: jax.Array, transitions: jax.Array) -> jax.Array:
        """Predictions ``[T, D]`` from each of the latents ``m [T, L]`` about the transition in the same place."""
        return jnp.einsum("tr,tro->to", *self._factors(params, m, transitions))

    def _factors(
        self, params: Params, m: jax.Array, transitions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        codes = self.code.apply(params["code"], m)
        features = self.features.apply(params["features"], transitions)
        return codes / math.sqrt(self.rank), features.reshape(len(transitions), self.rank, -1)


class _BeliefNetwork(NamedTuple):
    """The parts of a `belief_actor_critic` and the functions of them."""

    family: TaskFamily
    encoder: Memory
    posterior: Value
    policy: Head
    value: Value
    decoders: dict[str, _Decoder]
    novelty: Value | None = None
    bonuses: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        keys = jax.random.split(key, 6 if self.novelty is None else 7)
        params = {
            "encoder": self.encoder.init(keys[0], sum(encodings.input_sizes(self.family))),
            "posterior": self.posterior.init(keys[1]),
            "policy": self.policy.init(keys[2]),
            "value": self.value.init(keys[3]),
        }
        for key, (name, decoder) in zip(keys[4:], self.decoders.items(), strict=False):
            params[name] = decoder.init(key)
        if self.novelty is not None:
            fixed_key, trained_key = jax.random.split(keys[6])
            fixed = self.novelty.init(fixed_key)
            # Hidden layers that saturate make a function that differs from place to place.
            fixed |= {"body": jax.tree.map(lambda x: 10.0 * x, fixed["body"])}
            params["novelty"] = {"fixed": fixed, "trained": self.novelty.init(trained_key)}
        return params

    def posteriors(self, params: Params, y: jax.Array) -> DiagGaussian:
        """The posterior over m at each step, from the encoder's outputs."""
        mean, log_std = jnp.split(self.posterior.apply(params["posterior"], y), 2, axis=-1)
        return DiagGaussian(mean, log_std)

    def features(self, params: Params, inputs: Inputs, y: jax.Array) -> jax.Array:
        """Inputs of the policy and the value: the observation, the time and the belief, without a gradient."""
        # The logarithm of the standard deviation would grow without bound as a belief sharpens.
        q = jax.lax.stop_gradient(self.posteriors(params, y))
        return jnp.concatenate([inputs.obs, inputs.time, q.mean, jnp.exp(q.log_std)], axis=-1)

    def step(self, params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        """`ActorCritic.step`."""
        y, state = self.encoder.step(params["encoder"], state, joined(inputs), inputs.reset)
        return self.policy.apply(params["policy"], self.features(params, inputs, y)), state

    def unroll(self, params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        """`ActorCritic.unroll`."""
        y, _ = self.encoder.unroll(params["encoder"], state, joined(inputs), inputs.reset)
        x = self.features(params, inputs, y)
        return self.policy.apply(params["policy"], x), self.value.apply(params["value"], x)

    def loss(
        self,
        params: Params,
        key: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Hyper,
    ) -> tuple[jax.Array, dict]:
        """Minus the ELBO, and the error of the novelty's prediction where there is one; and their report."""
        y, _ = self.encoder.unroll(
            params["encoder"], data.memory.state, joined(inputs), inputs.reset
        )
        loss, report = self.negative_elbo(params, key, y, data, inputs, counted, hyper)
        if self.novelty is None:
            return loss, report
        squares = self.novelties(params, inputs, y)
        error = jnp.sum(jnp.where(counted, squares, 0.0)) / count(counted, squares)
        return loss + error, report | {"error/novelty": error}

    def novelties(self, params: Params, inputs: Inputs, y: jax.Array) -> jax.Array:
        """The error of the prediction about each observation and belief, ``[T]``; the encoder gets no gradient."""
        assert self.novelty is not None
        q = jax.lax.stop_gradient(self.posteriors(params, y))
        seen = jnp.concatenate([inputs.obs, q.mean, 2.0 * q.log_std], axis=-1)
        fixed, trained = (
            self.novelty.apply(params["novelty"][name], seen) for name in ("fixed", "trained")
        )
        return jnp.mean((trained - jax.lax.stop_gradient(fixed)) ** 2, axis=-1)

    def bonus(
        self,
        params: Params,
        key: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Hyper,
    ) -> dict[str, jax.Array]:
        """HyperX's bonuses of the steps of one trial, ``[T]`` each: of what is seen and believed after each.

        The last step's are 0: what follows it is not seen.
        """
        y, _ = self.encoder.unroll(
            params["encoder"], data.memory.state, joined(inputs), inputs.reset
        )
        found = {}
        if "novelty" in self.bonuses:
            found["novelty"] = _next(self.novelties(params, inputs, y))
        if "error" in self.bonuses:
            m = jax.tree.map(_next, self.posteriors(params, y)).sample(key)
            transitions, targets = self.transitions(data, inputs)
            found["error"] = sum(
                getattr(hyper, COSTS[name])
                * jnp.mean(
                    (decoder.each(params[name], m, transitions[name]) - targets[name]) ** 2, axis=-1
                )
                for name, decoder in self.decoders.items()
            )
        seen = counted & _next(counted)
        return {name: jnp.where(seen, x, 0.0) for name, x in found.items()}

    def transitions(
        self, data: Trajectory, inputs: Inputs
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """What each decoder reads of the transitions of a trial, and what it predicts, ``[T, ...]`` each."""
        next_obs = data.next_obs.reshape(len(data.reward), -1)
        cause = jnp.concatenate([inputs.obs, encodings.encode_action(data.action, self.family)], 1)
        transitions = {"rewards": jnp.concatenate([cause, next_obs], axis=1), "states": cause}
        return transitions, {"rewards": data.reward[:, None], "states": next_obs}

    def negative_elbo(
        self,
        params: Params,
        key: jax.Array,
        y: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Hyper,
    ) -> tuple[jax.Array, dict]:
        """Minus the weighted mean over t of ELBO_t / T, over the T ``counted`` steps of one trial; and its report."""
        q = self.posteriors(params, y)
        kl = jnp.sum(jnp.where(counted, q.kl(_priors(q, inputs.reset)), 0.0))
        errors = self.errors(params, q.sample(key), data, inputs, counted)
        loss = hyper.kl_cost * kl / count(counted, data.reward) ** 2
        loss += sum(getattr(hyper, COSTS[name]) * x for name, x in errors.items())
        report = {f"error/{name}": x for name, x in errors.items()}
        return loss, report | {"belief_kl": kl}

    def errors(
        self, params: Params, m: jax.Array, data: Trajectory, inputs: Inputs, counted: jax.Array
    ) -> dict[str, jax.Array]:
        """Mean squared error of each decoder over all pairs of a latent ``m [T, L]`` and a transition."""
        transitions, targets = self.transitions(data, inputs)
        pairs = (counted[:, None] & counted[None, :])[:, :, None]
        num_pairs = count(counted, data.reward) ** 2
        errors = {}
        for name, decoder in self.decoders.items():
            decoded = decoder.apply(params[name], m, transitions[name])
            square = jnp.where(pairs, (decoded - targets[name][None]) ** 2, 0.0)
            errors[name] = jnp.sum(square) / (num_pairs * square.shape[-1])
        return errors


def _next(x: jax.Array) -> jax.Array:
    """``x [T, ...]`` one step later; zeros after the last."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def _priors(q: DiagGaussian, reset: jax.Array) -> DiagGaussian:
    """The posterior of the step before, ``[T]``; N(0, I) at the first step and after a reset."""

    def before(x: jax.Array) -> jax.Array:
        past = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
        return jnp.where(reset[:, None], 0.0, past)

    return jax.tree.map(before, q)
