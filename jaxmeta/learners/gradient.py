r"""The fast loop of the gradient-based family: a policy that is adapted by policy-gradient steps.

In a task the agent φ is a set of policy parameters. It starts at the meta-learned θ and takes K steps

$$φ_0 = θ, \quad φ_{k+1} = φ_k - α ∇ L(φ_k; D_k), \quad D_k \sim π_{φ_k},$$

on a surrogate loss L of `surrogates`. MAML, ProMP, MAML-TRPO, Reptile and evolution strategies share this
loop and differ in how they learn θ; iMAML replaces the step (`InnerUpdate`). Settings adapt a part of the
parameters only (ANIL, CAVIA) or learn the step sizes too (Meta-SGD).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import checks, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.baselines import BASELINES, baseline_td_errors, sees_observations
from jaxmeta.estimators.episodes import first_episode_return, in_first_episode
from jaxmeta.estimators.returns import gae
from jaxmeta.estimators.streams import finite_streams, mean_over_streams, without_broken_streams
from jaxmeta.estimators.surrogates import Surrogate
from jaxmeta.estimators.units import advantage_scale
from jaxmeta.meta_updates.gradients import map_tasks
from jaxmeta.meta_updates.outer_loop import (
    Learned,
    Optimizer,
    OuterHyper,
    as_arrays,
    follow_meta_gradient,
)
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.policies import (
    Policy,
    action_distributions,
    check_policy_fits,
    default_policy,
    log_probs,
    policy_learner,
)
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.recurrences import KEPT
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, Hyper, Learner, MetaAlgorithm, Params, Task, Trajectory

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Settings of every learner that adapts by gradient steps."""

    num_streams: int = 20
    """Parallel episodes a task and update (N)."""
    num_steps: int | None = None
    """Steps of each (T), at least the family's horizon; None is the horizon, one whole episode."""
    num_updates: int = 1
    """Inner gradient steps (K) in meta-training; 0 trains without meta-learning."""
    step_sizes: Literal["fixed", "scalar", "parameter"] = "fixed"
    """Inner step sizes: fixed, one learned for all parameters, or one learned per parameter (Meta-SGD: Li
    et al. 2017)."""
    adapts: str = "all"
    """The parameters that inner steps change: `all` of them; the `head`, a network's last layer (ANIL: Raghu et
    al. 2020); or another top-level entry of the parameters."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    rematerialize: bool = True
    """Compute an inner step's intermediate values again in the backward pass rather than keep them:
    at K = 3 about a third of the memory. `benchmarks/second_order.py` measures it."""
    tasks_per_chunk: int | None = None
    """Tasks processed at a time, to bound memory; None is all of them on an accelerator and at most 5 on a single
    CPU (`meta_updates.tasks_at_once`). Changes results by rounding only. On several devices it must be a multiple
    of their number."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.at_least("num_streams", self.num_streams, 1)
        if self.num_steps is not None:
            checks.at_least("num_steps", self.num_steps, 1)
        checks.at_least("num_updates", self.num_updates, 0)
        checks.choice("step_sizes", self.step_sizes, ("fixed", "scalar", "parameter"))
        if self.tasks_per_chunk is not None:
            checks.at_least("tasks_per_chunk", self.tasks_per_chunk, 1)
        checks.at_least("unroll", self.unroll, 1)


@dataclasses.dataclass(frozen=True)
class Config(Adaptation):
    """Settings of a policy that adapts; algorithms add their own."""

    num_steps: int | None = None
    """Steps of each (T), at least the family's horizon; None is the horizon, one whole episode. An episode that
    ends sooner is followed by others, which are not learned from: a stream is one episode."""
    adapts: str = "all"
    """The parameters that inner steps change: `all` of them; the `head`, a network's last layer (ANIL: Raghu et
    al. 2020); the `context`, inputs that start at zero and are not meta-learned (CAVIA: Zintgraf et al.
    2019; set `context_size`); or another top-level entry of the policy's parameters."""
    inner_surrogate: str = "lvc"
    """Surrogate of the inner step: `score`, `dice`, `lvc` or another name in `surrogates.SURROGATES`, whose
    docstring says which to take when. On the policy's own experience `ppo_clip` equals `lvc`."""
    normalize: bool = False
    """Divide each batch's advantages by their root mean square, in inner and outer losses, so that learning
    does not depend on the unit of rewards. Steps then do not shrink near the optimum either."""
    baseline: Literal["auto", "observation", "time"] = "auto"
    """The inputs of the linear baseline, which is fitted to the other streams: `observation` and time, or
    `time` alone, for observations with many numbers and batches of few steps. `auto` takes observations of
    up to 248 numbers (`baselines.AUTO_FEATURES`), so no images."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """A tanh network, categorical or Gaussian as the action space asks, or softmax-linear in the family's
    `action_features`."""
    context_size: int = 0
    """Entries of the context, fed to the network beside the observation."""
    initial_std: float = 1.0
    """The initial standard deviation of a Gaussian policy, in half-widths of the action space. At 1 a third of
    the drawn actions lie outside. The smaller it is, the more an inner step changes the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("inner_surrogate", self.inner_surrogate, surrogates.SURROGATES)
        checks.choice("baseline", self.baseline, BASELINES)
        checks.at_least("context_size", self.context_size, 0)
        checks.between("initial_std", self.initial_std, 1e-12, 1e6)


class Discounting(Protocol):
    """The part of an algorithm's `Hyper` that inner and outer losses read."""

    @property
    def discount(self) -> float:
        """γ."""

    @property
    def gae_lambda(self) -> float:
        """λ of the advantages."""


class Meta(NamedTuple):
    """The parameters that adaptation starts from, and its numbers."""

    params: Params
    """θ, the parameters that adaptation starts from."""
    hyper: Hyper
    """The algorithm's Hyper, with at least discount, gae_lambda, step_size: see `step_sizes`."""


InnerLoss = Callable[[Params, Trajectory, Discounting], jax.Array]
"""``(params, data [N, T], hyper) -> []``: the loss that inner steps descend."""

InnerUpdate = Callable[..., Params]
"""``(meta, agent, data [N, T], *, loss: InnerLoss, config) -> agent``: `gradient_step`, `first_order_step` or an
algorithm's own."""


def gradient_step(
    meta: Meta,
    agent: Params,
    data: Trajectory,
    *,
    loss: InnerLoss,
    config: Adaptation,
    first_order: bool = False,
) -> Params:
    """The agent after a gradient step ``φ - α ∇L(φ; D)`` on its experience ``data [N, T]``.

    With ``first_order`` the gradient is a constant: φ_K depends on θ as θ itself does.
    """

    def step(meta: Meta, agent: Params, data: Trajectory) -> Params:
        part = adapted(agent, config)
        gradient = jax.grad(lambda part: loss(with_adapted(agent, part, config), data, meta.hyper))(
            part
        )
        if first_order:
            gradient = jax.lax.stop_gradient(gradient)
        return with_adapted(agent, inner_step(part, meta, gradient, config), config)

    return rematerialized(step, config)(meta, agent, data)


first_order_step = partial(gradient_step, first_order=True)
"""`gradient_step` whose gradient is a constant."""


def rematerialized(update: Function, config: Adaptation) -> Function:
    """``update``, whose intermediate values the backward pass computes again if ``config.rematerialize``.

    A lifetime is differentiated through its updates alone, so they take most of the memory.
    """
    if not config.rematerialize:
        return update
    keep = jax.checkpoint_policies.save_only_these_names(KEPT)
    return jax.checkpoint(update, policy=keep)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class AdaptiveLearner:
    """A learner whose rounds begin new episodes, and what outer loops need of it. All is for one task."""

    init: Callable[[jax.Array, Hyper], Meta]
    """``(key, hyper) -> meta``."""
    setup: rollouts.Setup
    """The learner in its environment, N streams of T steps."""
    config: Adaptation
    """Sizes, counts and choices."""

    @property
    def learner(self) -> Learner:
        """The learner."""
        return self.setup.learner

    @property
    def env_steps(self) -> int:
        """Steps of one lifetime: N T (K + 1)."""
        return self.setup.env_steps * (self.config.num_updates + 1)

    def live(self, key: jax.Array, meta: Meta, task: Task) -> History:
        """A lifetime, ``[K + 1]``; each of its rounds begins new episodes."""
        return rollouts.lifetime(
            key, meta, task, setup=self.setup, num_updates=self.config.num_updates, restart=True
        )


@dataclasses.dataclass(frozen=True)
class GradientLearner(AdaptiveLearner):
    """A learner that adapts by policy-gradient steps, with the functions that outer losses need."""

    distribution: Callable[[Params, Trajectory], Distribution]
    """``(params, data [N, T]) -> the policy's action distributions [N, T]``."""
    loss: Callable[[Params, Trajectory, Discounting, Surrogate], jax.Array]
    """``(params, data [N, T], hyper, surrogate) -> []``: `policy_loss`."""
    inner_loss: InnerLoss
    """``(params, data [N, T], hyper) -> []``: the loss with ``config.inner_surrogate``."""


@checks.arguments
def gradient_learner(
    family: TaskFamily,
    config: Config,
    *,
    policy: Policy | None = None,
    inner_update: InnerUpdate = gradient_step,
) -> GradientLearner:
    """The learner that ``config`` describes, on tasks of ``family``.

    Args:
        family: The tasks' family: environment, spaces and horizon.
        config: Sizes, counts and choices.
        policy: The policy that adapts; None builds the policy that ``config`` describes.
        inner_update: How an agent changes after each batch of experience.

    Raises:
        ValueError: the policy does not fit the family's action space; it has no parameters of the name
            ``config.adapts``; ``config.num_steps`` is below the horizon; observations are too long for the
            baseline of ``config``; ``config`` has a setting that the policy does not use.
    """
    num_steps = episode_steps(family, config)
    policy = configured_policy(family, config, policy)
    check_adapts(config, policy.init)
    sees_observations(family.observation_shape, config.baseline)
    loss = partial(policy_loss, policy=policy, config=config, horizon=family.horizon)
    inner_loss = partial(loss, surrogate=surrogates.SURROGATES[config.inner_surrogate])

    def update(key: jax.Array, meta: Meta, agent: Params, data: Trajectory) -> Params:
        del key
        return inner_update(meta, agent, data, loss=inner_loss, config=config)

    learner = policy_learner(
        policy,
        init=lambda key, meta: meta.params,
        params=lambda meta, agent: agent,
        update=update,
        reads=Meta,
    )
    return GradientLearner(
        init=lambda key, hyper: first_meta(policy.init(key), hyper, config),
        distribution=partial(action_distributions, policy),
        loss=loss,
        inner_loss=inner_loss,
        setup=rollouts.Setup(learner, family.env, config.num_streams, num_steps, config.unroll),
        config=config,
    )


def configured_policy(family: TaskFamily, config: Config, policy: Policy | None) -> Policy:
    """``policy``, or if it is None the policy that ``config`` describes.

    Raises:
        ValueError: the policy does not fit the family's action space, or does not use a setting of ``config``.
    """
    if policy is not None:
        names = ("policy", "hidden_sizes", "context_size", "initial_std")
        checks.ignored(config, names, "beside a policy= of your own")
        check_policy_fits(family, policy)
        return policy
    if config.policy == "softmax_linear":
        checks.ignored(config, ("hidden_sizes",), "with policy='softmax_linear'")
    return default_policy(
        config.policy,
        family.observation_shape,
        family.action_space,
        config.hidden_sizes,
        config.context_size,
        features=family.action_features,
        initial_std=config.initial_std,
    )


def policy_and_value(
    family: TaskFamily,
    config: Any,
    policy: Policy | None,
    value: Value | None,
    *,
    more_networks: bool = False,
) -> tuple[Policy, Value]:
    """``policy`` and ``value``; the policy or value that ``config`` describes stands in for None.

    ``more_networks`` says that another network reads ``config.hidden_sizes``, too.

    Raises:
        ValueError: the policy does not fit the family's action space; ``config`` has a setting that neither
            policy nor value uses.
    """
    if policy is not None:
        checks.ignored(config, ("policy",), "beside a policy= of your own")
        check_policy_fits(family, policy)
    no_network = policy is not None or config.policy == "softmax_linear"
    if value is not None and no_network and not more_networks:
        checks.ignored(config, ("hidden_sizes",), "where no network is built")
    policy = policy or default_policy(
        config.policy,
        family.observation_shape,
        family.action_space,
        config.hidden_sizes,
        features=family.action_features,
    )
    return policy, value or value_mlp(family.observation_shape, config.hidden_sizes)


def policy_loss(
    params: Params,
    data: Trajectory,
    hyper: Discounting,
    surrogate: Surrogate,
    *,
    policy: Policy,
    config: Config,
    horizon: int,
) -> jax.Array:
    """Minus the surrogate of the return of the first episodes in ``data [N, T]``, per step of T, ``[]``.

    Streams with a number that is not finite are left out. With no other stream the loss is NaN and its
    gradient zero: an update changes nothing, and a meta-update skips the task.
    """
    data, good = jax.tree.map(partial(checkpoint_name, name=KEPT), without_broken_streams(data))
    log_prob = log_probs(policy, params, data)
    discount = hyper.discount * data.discount
    counted = jax.vmap(in_first_episode)(data.last) & good[:, None]
    delta = baseline_td_errors(data, discount, horizon, counted, baseline=config.baseline)
    if config.normalize:
        advantage = jax.vmap(partial(gae, lambda_=hyper.gae_lambda))(
            delta, discount, last=data.last
        )
        delta = delta / advantage_scale(advantage, counted)
    delta = checkpoint_name(jnp.where(counted, jax.lax.stop_gradient(delta), 0.0), KEPT)
    terms = jax.vmap(surrogate, in_axes=(0, 0, 0, 0, 0, None))(
        log_prob, data.log_prob, delta, discount, data.timestep.first, hyper.gae_lambda
    )
    # A sum over one episode, divided by the constant T: the episodes' own lengths would bias it.
    return -mean_over_streams(terms, good) / data.reward.shape[1]


def adapted(params: Params, config: Adaptation) -> Any:
    """The part of a policy's parameters that inner steps change."""
    return params if config.adapts == "all" else params[config.adapts]


def with_adapted(params: Params, part: Any, config: Adaptation) -> Params:
    """The parameters with another adapted ``part``."""
    return part if config.adapts == "all" else {**params, config.adapts: part}


def check_adapts(config: Adaptation, init: Callable[[jax.Array], Params]) -> None:
    """Raises ValueError unless ``config.adapts`` names a part of the parameters that ``init(key)`` makes."""
    if config.adapts == "all":
        return
    shapes = jax.eval_shape(init, jax.random.key(0))
    checks.choice("adapts", config.adapts, ["all", *(shapes if isinstance(shapes, dict) else ())])


def episode_steps(family: TaskFamily, config: Adaptation) -> int:
    """Steps of a stream (T), which hold one whole episode.

    Raises:
        ValueError: ``config.num_steps`` is below the family's horizon, so that an episode may be cut.
    """
    if config.num_steps is None:
        return family.horizon
    if config.num_steps < family.horizon:
        raise ValueError(
            f"num_steps={config.num_steps} must be at least {family.horizon}, the horizon of family "
            f"{family.name!r}, or None: a stream is one episode, and one that is cut has no return"
        )
    return config.num_steps


def first_meta(params: Params, hyper: Hyper, config: Adaptation) -> Meta:
    """The `Meta` that training starts from: ``hyper`` as arrays, with a step size for each parameter if
    ``config.step_sizes`` is ``"parameter"``."""
    hyper = as_arrays(hyper)
    if config.step_sizes == "parameter":
        sizes = {
            name: jax.tree.map(jnp.full_like, part, jax.tree.broadcast(size, part))
            for name, (size, part) in step_sizes(params, hyper).items()
        }
        hyper = hyper._replace(**sizes)
    return Meta(params, hyper)


def step_sizes(params: Params, hyper: Hyper) -> dict[str, tuple[Any, Params]]:
    """The inner step sizes in ``hyper`` by name, each with its parameters.

    A top-level ``part`` of the parameters may have its own ``{part}_step_size``; ``step_size`` belongs to
    all others. A step size is one number, or a prefix of the tree of its parameters.
    """
    top_level = params if isinstance(params, dict) else {}
    own = {part: x for part, x in top_level.items() if hasattr(hyper, f"{part}_step_size")}
    rest = {part: x for part, x in top_level.items() if part not in own} if own else params
    parts = {"step_size": rest} | {f"{part}_step_size": x for part, x in own.items()}
    return {name: (getattr(hyper, name), x) for name, x in parts.items()}


def inner_step(part: Any, meta: Meta, gradient: Any, config: Adaptation) -> Any:
    """The adapted ``part`` after an inner step, ``part - α gradient``."""
    sizes = {
        name: jax.tree.broadcast(size, part)
        for name, (size, part) in step_sizes(meta.params, meta.hyper).items()
    }
    every = sizes.pop("step_size")
    if sizes:
        every |= {name.removesuffix("_step_size"): size for name, size in sizes.items()}
    return jax.tree.map(lambda p, a, g: p - a * g, part, adapted(every, config), gradient)


def learned_part(config: Adaptation) -> Learned:
    """The part of `Meta` that outer loops learn: `partition` and `combine` under ``config``."""
    return Learned(partial(partition, config=config), partial(combine, config=config))


def partition(meta: Meta, config: Adaptation) -> dict[str, Any]:
    """The part of ``meta`` that is meta-learned.

    A context is not meta-learned: it starts at zero in every task. A learned start would only add another
    bias to the first layer.
    """
    params = meta.params
    if config.adapts == "context":
        params = {name: x for name, x in params.items() if name != "context"}
    if config.step_sizes == "fixed":
        return {"params": params}
    sizes = step_sizes(meta.params, meta.hyper)
    return {"params": params} | {name: size for name, (size, _) in sizes.items()}


def combine(meta: Meta, learned: dict[str, Any], config: Adaptation) -> Meta:
    """``meta`` with its meta-learned part replaced by ``learned``, the inverse of `partition`."""
    params, sizes = learned["params"], {x: y for x, y in learned.items() if x != "params"}
    if config.adapts == "context":
        params = {**meta.params, **params}
    return Meta(params, meta.hyper._replace(**sizes) if sizes else meta.hyper)


def meta_learned(
    task_loss: Callable[[Meta, jax.Array, Task], tuple[jax.Array, dict]],
    parts: AdaptiveLearner,
    hyper: OuterHyper,
    optimizer: Optimizer,
) -> MetaAlgorithm:
    """The algorithm that learns the `learned_part` of ``meta`` by the gradient of ``task_loss``.

    Args:
        task_loss: ``(meta, key, task) -> (loss [], report)``.
        parts: The learner.
        hyper: The default of ``init(key, hyper)``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.
    """
    return follow_meta_gradient(
        task_loss,
        parts.learner,
        parts.init,
        learned_part(parts.config),
        hyper,
        optimizer,
        env_steps=parts.env_steps,
        tasks_per_chunk=parts.config.tasks_per_chunk,
        lifetime=parts.setup.collects(restart=True),
    )


def last_round(history: History) -> tuple[Any, Trajectory]:
    """The agent after the last update and its experience, ``(agent, data [N, T])``, of a history ``[K + 1]``."""
    return jax.tree.map(lambda x: x[-1], (history.agent, history.trajectories))


def mean_kl(old: Distribution, new: Distribution, good: jax.Array) -> jax.Array:
    """KL(old || new) in nats, its mean over the ``good`` (bool ``[N]``) streams of a batch ``[N, T]``, ``[]``."""
    return mean_over_streams(old.kl(new), good)  # type: ignore[arg-type]


def report(history: History) -> dict[str, jax.Array]:
    """Mean undiscounted returns of the newborn and of the adapted agent in a history ``[K + 1]``, and the number
    of streams that were left out: `skipped_streams`."""
    data = history.trajectories
    returns = jax.vmap(jax.vmap(first_episode_return))(data.reward, data.last)
    good = jax.vmap(finite_streams)(data)
    return {
        "return/before": mean_over_streams(returns[0], good[0]),
        "return/after": mean_over_streams(returns[-1], good[-1]),
        "skipped_streams": jnp.sum(~good, dtype=jnp.int32),
    }


def skipped_streams(*data: Trajectory) -> jax.Array:
    """The number of streams of ``data [..., N, T]`` that hold a number that is not finite, int32 ``[]``."""

    def broken(x: Trajectory) -> jax.Array:
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[x.reward.ndim - 1 :]), x)
        return jnp.sum(~finite_streams(flat), dtype=jnp.int32)

    return jnp.sum(jnp.stack([broken(x._replace(memory=())) for x in data]))


def record(
    key: jax.Array, meta: Meta, tasks: Task, *, parts: GradientLearner
) -> tuple[jax.Array, History]:
    """One lifetime in each of ``tasks [M]`` as data: ``(keys [M], histories [M, K + 1])``.

    For outer loops that use the same experience more than once: `rollouts.replay` with a lifetime's key.
    """
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    keys = jax.random.split(key, num_tasks)
    histories = map_tasks(
        lambda key_and_task: parts.live(key_and_task[0], meta, key_and_task[1]),
        (keys, tasks),
        tasks_per_chunk=parts.config.tasks_per_chunk,
    )
    return jax.random.clone(keys), jax.lax.stop_gradient(histories)
