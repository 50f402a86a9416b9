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
from jaxmeta.learners.recurrent import Loss, memory_of
from jaxmeta.networks import encodings, recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined
from jaxmeta.networks.distributions import DiagGaussian, Distribution
from jaxmeta.networks.heads import Head, action_head
from jaxmeta.networks.recurrent import Memory
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.Config):
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


class Hyper(NamedTuple):
    """Numbers of VariBAD: the numbers of `learners.recurrent.Hyper` and the weights of the ELBO's terms."""

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


COSTS = {"rewards": "reward_cost", "states": "state_cost"}
"""The weight of each decoded target."""


@checks.constructor()
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
    network, negative_elbo = belief_actor_critic(family, config, memory)
    loss = Loss(learners.recurrent.ppo, negative_elbo)
    return learners.recurrent.learn_from_trials(family, config, hyper, network, loss, optimizer)


@checks.arguments
def belief_actor_critic(
    family: TaskFamily, config: Config, memory: Memory | None = None
) -> tuple[ActorCritic, Callable[..., tuple[jax.Array, dict]]]:
    """A policy and a value on a belief, and the loss of the belief on one trial: `Loss.auxiliary`."""
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
    )
    actor_critic = ActorCritic(network.init, encoder.initial, network.step, network.unroll)
    return actor_critic, network.negative_elbo


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
        codes = self.code.apply(params["code"], m)
        features = self.features.apply(params["features"], transitions)
        features = features.reshape(len(transitions), self.rank, -1)
        return jnp.einsum("tr,iro->tio", codes, features) / math.sqrt(self.rank)


class _BeliefNetwork(NamedTuple):
    """The parts of a `belief_actor_critic` and the functions of them."""

    family: TaskFamily
    encoder: Memory
    posterior: Value
    policy: Head
    value: Value
    decoders: dict[str, _Decoder]

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        keys = jax.random.split(key, 6)
        params = {
            "encoder": self.encoder.init(keys[0], sum(encodings.input_sizes(self.family))),
            "posterior": self.posterior.init(keys[1]),
            "policy": self.policy.init(keys[2]),
            "value": self.value.init(keys[3]),
        }
        for key, (name, decoder) in zip(keys[4:], self.decoders.items(), strict=False):
            params[name] = decoder.init(key)
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

    def negative_elbo(
        self,
        params: Params,
        key: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Hyper,
    ) -> tuple[jax.Array, dict]:
        """Minus the weighted mean over t of ELBO_t / T, over the T ``counted`` steps of one trial; and its report."""
        y, _ = self.encoder.unroll(
            params["encoder"], data.memory.state, joined(inputs), inputs.reset
        )
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
        next_obs = data.next_obs.reshape(len(m), -1)
        cause = jnp.concatenate([inputs.obs, encodings.encode_action(data.action, self.family)], 1)
        transitions = {"rewards": jnp.concatenate([cause, next_obs], axis=1), "states": cause}
        targets = {"rewards": data.reward[:, None], "states": next_obs}
        pairs = (counted[:, None] & counted[None, :])[:, :, None]
        num_pairs = count(counted, data.reward) ** 2
        errors = {}
        for name, decoder in self.decoders.items():
            decoded = decoder.apply(params[name], m, transitions[name])
            square = jnp.where(pairs, (decoded - targets[name][None]) ** 2, 0.0)
            errors[name] = jnp.sum(square) / (num_pairs * square.shape[-1])
        return errors


def _priors(q: DiagGaussian, reset: jax.Array) -> DiagGaussian:
    """The posterior of the step before, ``[T]``; N(0, I) at the first step and after a reset."""

    def before(x: jax.Array) -> jax.Array:
        past = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
        return jnp.where(reset[:, None], 0.0, past)

    return jax.tree.map(before, q)
