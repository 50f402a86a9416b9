r"""VariBAD: a policy that acts on a learned belief about the task.

Zintgraf et al. 2020, "VariBAD: a very good method for Bayes-adaptive deep RL via meta-learning". A recurrent
encoder turns what was seen up to step t into a posterior over a latent m that stands for the task,
``q(m | τ_:t) = N(μ_t, σ_t²)``. It is trained with decoders of rewards and successors on

$$ELBO_t = E_{m \sim q(m | τ_{:t})} \sum_{i<T} \log p(r_i, s_{i+1} | s_i, a_i, m) - KL(q(m | τ_{:t}) \,\|\, q(m | τ_{:t-1}))$$

(eq. 8 and 9: the past is reconstructed and the future predicted; the first prior is N(0, I)), with weights on
its terms, the policy by PPO on the observation and (μ_t, σ_t) together, with no gradient from it into the
encoder (section 3.3). Rewards are decoded in the units that the encoder sees (see `learners.recurrent`), and T
counts the steps up to the end of the trial's last episode. Both learn from the same trials, in the same steps of one optimiser; so what PPO calls
a change of policy holds changes of the belief as well.
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
from jaxmeta.learners.recurrent import Loss
from jaxmeta.networks import encodings, recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined
from jaxmeta.networks.distributions import DiagGaussian, Distribution
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.Config):
    """Settings of VariBAD that are fixed when the program is compiled: sizes, counts and choices."""

    hidden_sizes: tuple[int, ...] = (128, 64)
    """Widths of the policy's and the value's hidden layers; what to do about a belief is for them alone to
    find out."""
    memory: Literal["gru", "lstm", "linear", "transformer"] = "gru"
    """The encoder's memory."""
    memory_size: int = 64
    """Its width."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of its matrix products, as in `rl2`."""
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
    """Numbers of VariBAD that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ, to steady the advantages: what is wanted is the trial's undiscounted return."""
    gae_lambda: float = 0.95
    """λ of the advantages."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size and the weight of the entropy fall to zero in a straight line;
    infinite keeps them."""
    max_grad_norm: float = 1.0
    """Clips the norm of the gradient."""
    clip: float = 0.2
    """ε: ratios beyond 1 ± ε earn nothing more."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy, in nats a step."""
    value_cost: float = 0.5
    """Weight of the squared error of values, in units of the spread of returns."""
    reward_cost: float = 10.0
    """Weight of the squared error of rewards, in units of their running scale."""
    state_cost: float = 1.0
    """Weight of the squared error of successors, a mean over their entries."""
    kl_cost: float = 0.1
    """Weight of the divergence of a posterior from the one before, in nats."""


@checks.constructor()
def varibad(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> MetaAlgorithm:
    """VariBAD on a family of tasks; arguments and errors as in `rl2`."""
    network, negative_elbo = belief_actor_critic(family, config)
    loss = Loss(learners.recurrent.ppo, negative_elbo)
    return learners.recurrent.learn_from_trials(family, config, hyper, network, loss, optimizer)


@checks.arguments
def belief_actor_critic(
    family: TaskFamily, config: Config
) -> tuple[ActorCritic, Callable[..., tuple[jax.Array, dict]]]:
    """A policy and a value on a belief, and the loss ``(params, key, data [T], inputs [T],
    counted [T], hyper) -> (loss [], report)`` of one trial by which the belief is learned."""
    obs_size, past_size, time_size = encodings.input_sizes(family)
    latent_size = config.latent_size
    encoder = recurrent.make(
        config.memory,
        num_inputs=obs_size + past_size + time_size,
        size=config.memory_size,
        precision=config.precision,
        context=config.num_episodes * family.horizon,
    )
    posterior = value_mlp((config.memory_size,), (), 2 * latent_size)
    policy, value = learners.recurrent.heads(obs_size + time_size + 2 * latent_size, family, config)
    # What is decoded is a product of a code of the latent and features of a transition. The posteriors of
    # all steps are held against all transitions, T² pairs; so either network runs only T times.
    *hidden, rank = config.decoder_sizes
    code = value_mlp((latent_size,), hidden, rank)
    cause_size = obs_size + past_size - 1
    features = {
        "rewards": value_mlp((cause_size + obs_size,), hidden, rank),
        "states": value_mlp((cause_size,), hidden, rank * obs_size),
    }

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 6)
        params = {
            "encoder": encoder.init(keys[0]),
            "posterior": posterior.init(keys[1]),
            "policy": policy.init(keys[2]),
            "value": value.init(keys[3]),
        }
        for key, name in zip(keys[4:], config.decodes, strict=False):
            code_key, features_key = jax.random.split(key)
            params[name] = {
                "code": code.init(code_key),
                "features": features[name].init(features_key),
            }
        return params

    def posteriors(params: Params, y: jax.Array) -> DiagGaussian:
        mean, log_std = jnp.split(posterior.apply(params["posterior"], y), 2, axis=-1)
        return DiagGaussian(mean, log_std)

    def seen_by_policy(params: Params, inputs: Inputs, y: jax.Array) -> jax.Array:
        # The standard deviation, not its logarithm, which grows without bound as a belief sharpens.
        q = jax.lax.stop_gradient(posteriors(params, y))
        return jnp.concatenate([inputs.obs, inputs.time, q.mean, jnp.exp(q.log_std)], axis=-1)

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        y, state = encoder.step(params["encoder"], state, joined(inputs), inputs.reset)
        return policy.apply(params["policy"], seen_by_policy(params, inputs, y)), state

    def unroll(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        y, _ = encoder.unroll(params["encoder"], state, joined(inputs), inputs.reset)
        x = seen_by_policy(params, inputs, y)
        return policy.apply(params["policy"], x), value.apply(params["value"], x)

    def negative_elbo(
        params: Params,
        key: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Hyper,
    ) -> tuple[jax.Array, dict]:
        """Minus the mean over t of ELBO_t / T, its terms weighted, of the T counted steps of one trial."""
        num_steps = data.reward.shape[0]
        num_counted = count(counted, data.reward)
        pairs = (counted[:, None] & counted[None, :])[:, :, None]
        y, _ = encoder.unroll(params["encoder"], data.memory.state, joined(inputs), inputs.reset)
        q = posteriors(params, y)
        first = jnp.zeros((1, latent_size))
        before = jax.tree.map(
            # After a reset nothing is known, as at the beginning.
            lambda x: jnp.where(inputs.reset[:, None], 0.0, jnp.concatenate([first, x[:-1]])),
            q,
        )
        kl = jnp.sum(jnp.where(counted, q.kl(before), 0.0))

        m = q.sample(key)  # [T, L]
        next_obs = data.next_obs.reshape(num_steps, -1)
        cause = jnp.concatenate([inputs.obs, encodings.encode_action(data.action, family)], 1)
        shown = {"rewards": jnp.concatenate([cause, next_obs], axis=1), "states": cause}
        truth = {"rewards": data.reward[:, None], "states": next_obs}
        error = {}
        for name in config.decodes:
            codes = code.apply(params[name]["code"], m)  # [T, rank]
            of_transition = features[name].apply(params[name]["features"], shown[name])
            of_transition = of_transition.reshape(num_steps, rank, -1)
            decoded = jnp.einsum("tr,iro->tio", codes, of_transition) / math.sqrt(rank)
            square = jnp.where(pairs, (decoded - truth[name][None]) ** 2, 0.0)
            error[name] = jnp.sum(square) / (num_counted**2 * square.shape[-1])
        costs = {"rewards": hyper.reward_cost, "states": hyper.state_cost}
        loss = hyper.kl_cost * kl / num_counted**2
        loss += sum(costs[name] * x for name, x in error.items())
        report = {f"error/{name}": x for name, x in error.items()}
        return loss, report | {"belief_kl": kl}

    return ActorCritic(init, encoder.initial, step, unroll), negative_elbo
