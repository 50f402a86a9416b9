"""Model-agnostic meta-learning for reinforcement learning.

Finn, Abbeel & Levine 2017, "Model-agnostic meta-learning for fast adaptation of deep networks",
algorithm 3. The meta-parameters θ are an initialisation; in a task the agent φ starts there and takes K
policy-gradient steps,

    φ_0 = θ,    φ_{k+1} = φ_k + α ∇ L_inner(φ_k; D_k),    D_k ~ π_{φ_k},

and θ climbs L_outer(φ_K; D_K), the derivative taken through the updates. Settings make it first-order
MAML (eq. 1 with the Hessian dropped), Meta-SGD (Li et al. 2017: α learned, per parameter) and, with
K = 0, policy gradient on the mean task: the control that has learned everything but to adapt.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, objectives
from jaxmeta.adaptation import lifetime
from jaxmeta.meta_update import guarded_update, meta_gradient
from jaxmeta.networks import Policy, default_policy
from jaxmeta.returns import advantage_scale, baseline_td_errors, first_episode_return
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task, TimeStep, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_streams: int = 20
    """Parallel episodes a task and update (N)."""
    num_steps: int | None = None
    """Steps of each (T); None is the family's horizon, one whole episode."""
    num_updates: int = 1
    """Inner gradient steps (K) in meta-training; 0 trains without meta-learning."""
    first_order: bool = False
    """Treat the inner gradient as a constant (first-order MAML)."""
    step_sizes: Literal["fixed", "scalar", "parameter"] = "fixed"
    """Inner step sizes: fixed, one that is learned, or one learned per parameter (Meta-SGD)."""
    inner_surrogate: str = "lvc"
    """Surrogate of the inner step: `score`, `dice`, `lvc`, `ppo_clip` or another name in
    `objectives.SURROGATES`."""
    outer_surrogate: str = "score"
    """Surrogate of the meta-objective. It is evaluated where the adapted policy acted, and there all
    of them have the same gradient; inside, `ppo_clip` is `lvc` for the same reason."""
    outer_updates: Literal["last", "all"] = "last"
    """Which updates the meta-objective looks at: the policy after the last one, or the mean over all K
    (the multi-step loss of Antoniou et al. 2019, "How to train your MAML")."""
    normalize: bool = False
    """Divide each batch's advantages by their root mean square, so that step sizes do not depend on
    the scale of rewards; steps then do not shrink near the optimum either."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """A tanh network, categorical or Gaussian as the action space asks, or softmax-linear."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    tasks_per_chunk: int | None = None
    """Tasks whose gradients are computed at a time, to bound memory; None is all of them on an
    accelerator and 5 on a single CPU, whose cache the working set should fit. Changes results by
    rounding only. Leave it None on several devices: chunks are worked off one after the other."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        checks.at_least("num_streams", self.num_streams, 1)
        if self.num_steps is not None:
            checks.at_least("num_steps", self.num_steps, 1)
        checks.at_least("num_updates", self.num_updates, 0)
        checks.choice("step_sizes", self.step_sizes, ("fixed", "scalar", "parameter"))
        checks.choice("inner_surrogate", self.inner_surrogate, objectives.SURROGATES)
        checks.choice("outer_surrogate", self.outer_surrogate, objectives.SURROGATES)
        checks.choice("outer_updates", self.outer_updates, ("last", "all"))
        if self.tasks_per_chunk is not None:
            checks.at_least("tasks_per_chunk", self.tasks_per_chunk, 1)
        checks.at_least("unroll", self.unroll, 1)


class Hyper(NamedTuple):
    """What may be swept, scheduled or learned: numbers, or arrays ``[]`` that are mapped or traced."""

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


class Meta(NamedTuple):
    """What the learner reads."""

    params: Params  # θ
    step_size: Any  # α: [] or a tree like params
    hyper: Hyper


class State(NamedTuple):
    """What the slow loop carries."""

    meta: Meta
    optimizer: Any
    num_updates: jax.Array  # [], int32: meta-updates that were applied


def maml(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> MetaAlgorithm:
    """MAML on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: What shapes the program.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The policy that adapts; None builds the one that ``config.policy`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range.
    """
    if policy is None:
        policy = default_policy(
            config.policy, family.observation_shape, family.action_space, config.hidden_sizes
        )
    _check(hyper)
    num_steps = config.num_steps or family.horizon
    inner_surrogate = objectives.SURROGATES[config.inner_surrogate]
    outer_surrogate = objectives.SURROGATES[config.outer_surrogate]

    def policy_loss(
        params: Params, data: Trajectory, hyper: Hyper, surrogate: objectives.Surrogate
    ) -> jax.Array:
        """Minus the surrogate per step of ``data [N, T]``, ``[]``."""
        distribution = jax.vmap(policy.unroll, in_axes=(None, 0, 0))(
            params, data.memory, data.timestep
        )
        log_prob = distribution.log_prob(data.action)
        discount = hyper.discount * data.discount
        delta = baseline_td_errors(data, discount, family.horizon)
        if config.normalize:
            delta = delta / advantage_scale(delta, discount, data.last, hyper.gae_lambda)
        delta = jax.lax.stop_gradient(delta)
        terms = jax.vmap(surrogate, in_axes=(0, 0, 0, 0, 0, None))(
            log_prob, data.log_prob, delta, discount, data.timestep.first, hyper.gae_lambda
        )
        # A sum over time, over a constant: the realised lengths would bias it.
        return -jnp.mean(terms) / data.reward.shape[1]

    # The updates are the only part of a lifetime that is differentiated, so their intermediate
    # values are what memory goes to: keep their inputs and compute the rest again.
    @jax.checkpoint
    def update(key: jax.Array, meta: Meta, agent: Params, data: Trajectory) -> Params:
        del key
        gradient = jax.grad(policy_loss)(agent, data, meta.hyper, inner_surrogate)
        if config.first_order:
            gradient = jax.lax.stop_gradient(gradient)
        if config.step_sizes == "parameter":
            return jax.tree.map(lambda p, a, g: p - a * g, agent, meta.step_size, gradient)
        return jax.tree.map(lambda p, g: p - meta.step_size * g, agent, gradient)

    def act(
        key: jax.Array, meta: Meta, agent: Params, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        distribution, memory = policy.step(agent, memory, timestep)
        action = distribution.sample(key)
        return action, distribution.log_prob(action), memory

    learner = Learner(
        init=lambda key, meta: meta.params,
        memory=lambda meta: policy.memory(),
        act=act,
        update=update,
    )

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        """The meta-objective in one task (to be minimised) and what to report."""
        history = lifetime(
            key,
            meta,
            task,
            learner=learner,
            env=family.env,
            num_streams=config.num_streams,
            num_updates=config.num_updates,
            num_steps=num_steps,
            restart=True,
            unroll=config.unroll,
        )
        first_scored = 1 if config.outer_updates == "all" and config.num_updates > 0 else -1
        scored = jax.tree.map(lambda x: x[first_scored:], history)
        losses = jax.vmap(
            lambda agent, data: policy_loss(agent, data, meta.hyper, outer_surrogate)
        )(scored.agent, scored.trajectories)
        data = history.trajectories
        returns = jax.vmap(jax.vmap(first_episode_return))(data.reward, data.last).mean(1)
        return jnp.mean(losses), {"return/before": returns[0], "return/after": returns[-1]}

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        hyper = jax.tree.map(lambda x: jnp.asarray(x, float), hyper)
        params = policy.init(key)
        step_size = hyper.step_size
        if config.step_sizes == "parameter":
            step_size = jax.tree.map(lambda p: jnp.full_like(p, hyper.step_size), params)
        meta = Meta(params, step_size, hyper)
        optimizer_state = make_optimizer(hyper).init(learned_part(meta))
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32))

    def make_optimizer(hyper: Hyper) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(hyper.max_grad_norm), optimizer(hyper.learning_rate)
        )

    def learned_part(meta: Meta) -> dict:
        learned = {"params": meta.params}
        if config.step_sizes != "fixed":
            learned["step_size"] = meta.step_size
        return learned

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        meta = state.meta
        gradient, metrics = meta_gradient(
            lambda learned, key, task: task_loss(meta._replace(**learned), key, task),
            learned_part(meta),
            key,
            tasks,
            tasks_per_chunk=config.tasks_per_chunk,
        )
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        applied = metrics["skipped_tasks"] < num_tasks
        learned, optimizer_state = guarded_update(
            make_optimizer(meta.hyper),
            gradient,
            state.optimizer,
            learned_part(meta),
            apply=applied,
        )
        num_steps_taken = num_tasks * config.num_streams * num_steps * (config.num_updates + 1)
        metrics |= {
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(num_steps_taken, jnp.int32),
        }
        return State(
            meta._replace(**learned), optimizer_state, state.num_updates + applied
        ), metrics

    return MetaAlgorithm(init, step, learner)


def _check(hyper: Hyper) -> None:
    """Ranges of the values that are plain numbers; traced ones are the caller's."""
    ranges = {
        "discount": (0, 1),
        "gae_lambda": (0, 1),
        "step_size": (-1e6, 1e6),
        "learning_rate": (0, 1e6),
        "max_grad_norm": (1e-12, math.inf),
    }
    for name, (low, high) in ranges.items():
        value = getattr(hyper, name)
        if isinstance(value, int | float):
            checks.between(name, value, low, high)
