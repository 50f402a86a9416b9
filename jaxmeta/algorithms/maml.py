"""Model-agnostic meta-learning for reinforcement learning.

Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning for fast adaptation of deep networks",
algorithm 3. The meta-parameters θ are an initialisation. In a task the agent φ starts there and takes K
policy-gradient steps (see `learners.gradient`). θ climbs the return of φ_K on its own experience D_K; the
derivative goes through the updates. (On a policy's own experience all surrogates of its return have the
same gradient, so the outer loss offers no choice of surrogate. The inner one does: `estimators.surrogates`
has a table of settings. For each it names the objective without bias, and when to take it.) Settings make it

* first-order MAML (`first_order`: eq. 1 with the Hessian dropped);
* E-MAML (`sampling_correction`: Stadie et al. 2018), which also counts the effect of θ on the experience
  that the inner steps learn from;
* Meta-SGD (`step_sizes`: Li et al. 2017), ANIL and CAVIA (`adapts`: Raghu et al. 2020, Zintgraf et al.
  2019);
* with K = 0, policy gradient on the mean task: a control that has learned everything but to adapt.

Use it for a policy that adapts by a few gradient steps. It costs a backward pass through every inner step. It can use
only what its own episodes reveal about the task, and it does not explore on purpose.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.maml import Config, Hyper, maml

family = tasks.make("navigation", horizon=10)
algorithm = maml(family, Config(num_streams=4), Hyper(step_size=0.3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import cumulative_discount, in_first_episode
from jaxmeta.estimators.streams import finite_streams, mean_over_streams, without_broken_streams
from jaxmeta.learners.gradient import (
    GradientLearner,
    Meta,
    first_order_step,
    gradient_step,
    last_round,
)
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, MetaAlgorithm, Params, Task, Trajectory

CORRECTIONS = ("none", "score", "leave_one_out")


@dataclasses.dataclass(frozen=True)
class Config(learners.gradient.Config):
    """Settings of MAML that are fixed when the program is compiled: sizes, counts and choices."""

    first_order: bool = False
    """Treat the inner gradient as a constant (first-order MAML)."""
    sampling_correction: Literal["none", "score", "leave_one_out"] = "none"
    """Count the effect of θ on the experience that the inner steps learn from (E-MAML). `score`: the baseline
    is the mean return of the other streams. `leave_one_out`: the baseline is the policy adapted without
    that stream. Its variance falls with N. Only for K = 1; costs N extra inner steps. With `gae_lambda=1`
    both are unbiased for what N streams lead to. They need `inner_surrogate='score'`."""
    outer_updates: Literal["last", "all"] = "last"
    """The updates that enter the meta-objective: the policy after the last one, or the mean over all K
    (the multi-step loss of Antoniou et al. 2019, "How to train your MAML")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("sampling_correction", self.sampling_correction, CORRECTIONS)
        checks.choice("outer_updates", self.outer_updates, ("last", "all"))
        if self.sampling_correction == "none":
            return
        correction = f"sampling_correction={self.sampling_correction!r}"
        if self.inner_surrogate != "score":
            raise ValueError(
                f"inner_surrogate={self.inner_surrogate!r} must be 'score' with {correction}: the "
                "derivatives of the others carry the experience's dependence on θ already"
            )
        if self.normalize:
            raise ValueError(f"normalize must be off with {correction}: it rescales the objective")
        if self.first_order:
            raise ValueError(
                f"first_order must be off with {correction}: the correction is one half of a gradient, "
                "the derivative through the update the other"
            )
        if self.sampling_correction == "leave_one_out" and self.num_updates != 1:
            raise ValueError(
                f"num_updates={self.num_updates} must be 1 with {correction}: later experience "
                "depends on every earlier stream"
            )


class Hyper(NamedTuple):
    """Numbers of MAML that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of the advantages; below 1 it is biased unless the baseline is exact."""
    step_size: float = 0.5
    """Inner step size α; where it is learned, what it starts from."""
    learning_rate: float = 5e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""


@checks.constructor()
def maml(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """MAML on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The policy that adapts; None builds the policy that ``config`` describes.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.

    Raises:
        ValueError: the policy does not fit the family's action space, or does not use a setting of
            ``config``; a value of ``hyper`` is out of range.
    """
    inner_update = first_order_step if config.first_order else gradient_step
    parts = learners.gradient_learner(family, config, policy=policy, inner_update=inner_update)

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)  # φ_0 = θ, D_0, φ_1, D_1, ..., φ_K, D_K
        return meta_loss(meta, history, parts, config), learners.gradient.report(history)

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)


def meta_loss(meta: Meta, history: History, parts: GradientLearner, config: Config) -> jax.Array:
    """A loss of one lifetime ``[K + 1]``; its gradient in ``meta`` is the lifetime's meta-gradient, ``[]``."""

    def outer_loss(agent: Params, data: Trajectory) -> jax.Array:
        return parts.loss(agent, data, meta.hyper, surrogates.SURROGATES["score"])

    if _every_update_counts(config):
        adapted = jax.tree.map(lambda x: x[1:], history)
        loss = jnp.mean(jax.vmap(outer_loss)(*adapted))
    else:
        loss = outer_loss(*last_round(history))
    if config.sampling_correction == "none" or config.num_updates == 0:
        return loss
    return loss - sampling_term(meta, history, parts, config)


def _every_update_counts(config: Config) -> bool:
    """Whether the meta-objective is the mean over the agents after each update; if not, the last agent's."""
    return config.outer_updates == "all" and config.num_updates > 0


def round_weights(config: Config) -> np.ndarray:
    """The weights of the K + 1 rounds in the meta-objective, ``[K + 1]``."""
    weights = np.zeros(config.num_updates + 1)
    if _every_update_counts(config):
        weights[1:] = 1 / config.num_updates
    else:
        weights[-1] = 1.0
    return weights


def sampling_term(
    meta: Meta, history: History, parts: GradientLearner, config: Config
) -> jax.Array:
    """E-MAML's term of one lifetime ``[K + 1]``: each stream's log-probability times the gain that it led to, ``[]``."""
    gains = score_gains if config.sampling_correction == "score" else leave_one_out_gains
    data, good = jax.vmap(without_broken_streams)(history.trajectories)

    def first_episodes(agent: Params, data: Trajectory) -> jax.Array:
        log_prob = parts.distribution(agent, data).log_prob(data.action)
        return jnp.where(jax.vmap(in_first_episode)(data.last), log_prob, 0.0)

    # A stream that was left out of an update did not contribute to what followed.
    gain = jax.lax.stop_gradient(gains(meta, history, parts, config))
    gain = jnp.where(good[:-1], gain, 0.0)
    learned_from = jax.tree.map(lambda x: x[:-1], (history.agent, data))
    log_prob = jax.vmap(first_episodes)(*learned_from)
    return jnp.sum(jax.vmap(surrogates.sampling_correction)(log_prob, gain))


def score_gains(meta: Meta, history: History, parts: GradientLearner, config: Config) -> jax.Array:
    """The return after each update less the other streams' mean return before it, ``[K, N]``."""
    good = jax.vmap(finite_streams)(history.trajectories)

    def per_step_return(data: Trajectory) -> jax.Array:
        g = cumulative_discount(meta.hyper.discount * data.discount, data.timestep.first)
        return jnp.mean(jnp.where(in_first_episode(data.last), g * data.reward, 0.0))

    earned = jax.vmap(jax.vmap(per_step_return))(history.trajectories)  # [K + 1, N]
    weights = jnp.asarray(round_weights(config))
    weight_to_come = jnp.cumsum(weights[::-1])[::-1][1:]  # [K]
    mean = jax.vmap(mean_over_streams)(earned, good)
    to_come = jnp.cumsum((weights * mean)[::-1])[::-1][1:]
    baseline = jax.vmap(surrogates.leave_one_out_mean)(earned[:-1], good[:-1])
    return to_come[:, None] - weight_to_come[:, None] * baseline


def leave_one_out_gains(
    meta: Meta, history: History, parts: GradientLearner, config: Config
) -> jax.Array:
    """The gain of the adapted policy over the policy that is adapted without the stream, ``[1, N]``.

    The latter does not depend on the stream, so it is a baseline. The difference of the two policies'
    returns is an importance-weighted difference on the experience after adaptation.
    """
    meta, history = jax.lax.stop_gradient((meta, history))
    before, after = (jax.tree.map(lambda x, i=i: x[i], history) for i in (0, 1))
    num_streams = config.num_streams
    unbiased = meta.hyper._replace(gae_lambda=1.0)

    def gain(n: jax.Array) -> jax.Array:
        agent = before.agent
        if num_streams > 1:
            others = (n + 1 + jnp.arange(num_streams - 1)) % num_streams
            data = jax.tree.map(lambda x: x[others], before.trajectories)
            # Updates take a key; a gradient step does not use it.
            agent = parts.learner.update(jax.random.key(0), meta, agent, data)
        return parts.loss(agent, after.trajectories, unbiased, surrogates.SURROGATES["dice"])

    return jax.lax.map(gain, jnp.arange(num_streams))[None]
