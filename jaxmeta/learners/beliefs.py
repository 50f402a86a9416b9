"""A policy that acts on a belief about the task: a recurrent encoder, decoders that teach it, and bonuses for exploration.

`algorithms.varibad` explains the belief. It is the posterior over a latent m that stands for the task, from the steps of a trial so far.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.estimators.streams import count
from jaxmeta.networks import encodings
from jaxmeta.networks.actor_critic import Inputs, joined
from jaxmeta.networks.distributions import DiagGaussian, Distribution
from jaxmeta.networks.heads import Head
from jaxmeta.networks.recurrent import Memory
from jaxmeta.networks.values import Value
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params, Trajectory

COSTS = {"rewards": "reward_cost", "states": "state_cost"}
"""The weight of each decoded target, a field of the algorithm's Hyper."""


def squared(decoded: jax.Array, target: jax.Array) -> jax.Array:
    """The squared error of each prediction, ``[...]``."""
    return (decoded - target) ** 2


def cross_entropy_of_sign(decoded: jax.Array, target: jax.Array) -> jax.Array:
    """The cross-entropy of whether each target is positive, which ``decoded`` predicts as a logit, in nats, ``[...]``."""
    return jax.nn.softplus(decoded) - jnp.where(target > 0, decoded, 0.0)


def successors(obs_size: int, rank: int) -> Value:
    """Features of a transition that are the successor's observation, its last ``obs_size`` entries, as a `Decoder` of ``rank`` scales them."""
    return Value(lambda key: {}, lambda params, x: math.sqrt(rank) * x[..., -obs_size:])


class Decoder(NamedTuple):
    """A prediction about transitions from the latent: a product of a code of the latent and features of a transition.

    The posteriors of all steps are compared with all transitions, T² pairs. With the product each network
    runs only T times.
    """

    code: Value
    """The latent's code, ``[rank]``."""
    features: Value
    """A transition's features, ``[rank * D]``."""
    rank: int
    """The size of the code."""
    error: Callable[[jax.Array, jax.Array], jax.Array] = squared
    """``(decoded, target) -> error``, of any shape."""

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


class BeliefNetwork(NamedTuple):
    """A policy and a value on a belief, its loss and its bonuses."""

    family: TaskFamily
    """The tasks' family."""
    encoder: Memory
    """The recurrent network that reads all inputs."""
    posterior: Value
    """From the encoder's output to the mean and the log standard deviation of m, ``[2 L]``."""
    policy: Head
    """The policy, on `features`."""
    value: Value
    """The value, on `features`."""
    decoders: dict[str, Decoder]
    """The predictions from m, by the names of `COSTS`."""
    spread: Literal["std", "log_variance"] = "std"
    """How the policy and the value read the standard deviation."""
    end_to_end: bool = False
    """The policy's and the value's gradients reach the encoder."""
    bonuses: tuple[str, ...] = ()
    """The bonuses, `novelty`, `error` or both."""
    novelty: Value | None = None
    """The two networks of the bonus `novelty`."""

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
        """Inputs of the policy and the value: the observation, the time and the belief."""
        q = self.posteriors(params, y)
        if not self.end_to_end:
            q = jax.lax.stop_gradient(q)
        spread = jnp.exp(q.log_std) if self.spread == "std" else 2.0 * q.log_std
        return jnp.concatenate([inputs.obs, inputs.time, q.mean, spread], axis=-1)

    def step(self, params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        """`ActorCritic.step`."""
        y, state = self.encoder.step(params["encoder"], state, joined(inputs), inputs.reset)
        return self.policy.apply(params["policy"], self.features(params, inputs, y)), state

    def encoded(self, params: Params, state: Any, inputs: Inputs) -> jax.Array:
        """The encoder's outputs at the steps of a trial, ``[T, size]``, from its ``state`` before the first."""
        return self.encoder.unroll(params["encoder"], state, joined(inputs), inputs.reset)[0]

    def unroll(self, params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        """`ActorCritic.unroll`."""
        x = self.features(params, inputs, self.encoded(params, state, inputs))
        return self.policy.apply(params["policy"], x), self.value.apply(params["value"], x)

    def loss(
        self,
        params: Params,
        key: jax.Array,
        data: Trajectory,
        inputs: Inputs,
        counted: jax.Array,
        hyper: Any,
    ) -> tuple[jax.Array, dict]:
        """Minus the ELBO, and the error of the novelty's prediction where there is one; and their report."""
        y = self.encoded(params, data.memory.state, inputs)
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
        hyper: Any,
    ) -> dict[str, jax.Array]:
        """HyperX's bonuses of the steps of one trial, ``[T]`` each. A step's bonus is of the observation and the belief after it.

        The last step has a bonus of 0, because no observation follows it.
        """
        y = self.encoded(params, data.memory.state, inputs)
        found = {}
        if "novelty" in self.bonuses:
            found["novelty"] = _next(self.novelties(params, inputs, y))
        if "error" in self.bonuses:
            m = jax.tree.map(_next, self.posteriors(params, y)).sample(key)
            transitions, targets = self.transitions(data, inputs)
            found["error"] = sum(
                getattr(hyper, COSTS[name])
                * jnp.mean(
                    decoder.error(decoder.each(params[name], m, transitions[name]), targets[name]),
                    axis=-1,
                )
                for name, decoder in self.decoders.items()
            )
        seen = counted & _next(counted)
        return {name: jnp.where(seen, x, 0.0) for name, x in found.items()}

    def transitions(
        self, data: Trajectory, inputs: Inputs
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The inputs of each decoder from the transitions of a trial, and its targets, ``[T, ...]`` each."""
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
        hyper: Any,
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
        """Mean error of each decoder over all pairs of a latent ``m [T, L]`` and a transition."""
        transitions, targets = self.transitions(data, inputs)
        pairs = (counted[:, None] & counted[None, :])[:, :, None]
        num_pairs = count(counted, data.reward) ** 2
        errors = {}
        for name, decoder in self.decoders.items():
            decoded = decoder.apply(params[name], m, transitions[name])
            error = jnp.where(pairs, decoder.error(decoded, targets[name][None]), 0.0)
            errors[name] = jnp.sum(error) / (num_pairs * error.shape[-1])
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
