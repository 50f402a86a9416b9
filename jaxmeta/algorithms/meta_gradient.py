r"""Meta-gradients: agents whose discount, λ, costs, step size and reward are learned while they live.

Xu, van Hasselt & Silver 2018, "Meta-gradient reinforcement learning". An agent θ is an actor-critic that
learns on and on, and its update depends on numbers η,

$$θ_{k+1} = θ_k - α ∇ L_η(θ_k; D_k), \quad D_k \sim π_{θ_k},$$

which are moved after every L updates down a meta-objective on what the agent does next,

$$η ← η - β ∇_η L'(θ_L(η); D_L),$$

the derivative taken through those L updates and no further: the memory that it needs does not grow with
a lifetime. D_L is then learned from in its turn, with the new η. All lives share η. The agent and its
update are in `actor_critic`. Settings make it

* self-tuning actor-critic (`learns` costs and step sizes, `outer_kl_cost`: Zahavy et al. 2020, "A
  self-tuning actor-critic algorithm", without its leaky V-trace: here all data are on-policy);
* LIRPG (`intrinsic_reward`: Zheng, Oh & Singh 2018, "On learning intrinsic rewards for policy gradient
  methods"): a reward r_η(s, a) is added to the one that the agent learns from;
* bootstrapped meta-gradients (`outer="bootstrap"`: Flennerhag et al. 2022, "Bootstrapped meta-learning"):
  the meta-objective is the distance to where a few more updates would lead;
* debiased (`outer_value`: Bonnet, Midgley & Laterre 2022, "Debiasing meta-gradient reinforcement learning
  by learning the outer value function"): L' has a value function of its own discount;
* less noisy (`leave_one_out`): the derivative of an advantage in γ has a baseline, which the value, of the
  present η alone, is not (Xu et al. condition values on η instead);
* with nothing to learn, the actor-critic itself.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners, meta_updates, rollouts
from jaxmeta.estimators.streams import finite_streams, without_broken_streams
from jaxmeta.learners.actor_critic import HYPER_RANGES, Agent, Hyper, Meta, learned_hyper
from jaxmeta.learners.gradient import mean_kl, skipped_streams
from jaxmeta.meta_updates.outer_loop import Optimizer, is_applicable, outer_optimizer
from jaxmeta.networks.policies import Policy
from jaxmeta.networks.values import Value
from jaxmeta.rollouts import lifelong
from jaxmeta.rollouts.lifelong import Life, Score
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import MetaAlgorithm, Params, Stream, Task, Trajectory

# A meta-gradient through small steps is small, and a bootstrapped one smaller: Adam's own ε would hide it.
ADAM = partial(optax.adam, eps=1e-15)
NO_END = int(jnp.iinfo(jnp.int32).max)


@dataclasses.dataclass(frozen=True)
class Config(learners.actor_critic.Config):
    """Settings of meta-gradients that are fixed when the program is compiled: sizes, counts and choices."""

    num_agents: int = 20
    """Lives that go on at a time (M); a step must be given as many tasks, for those that begin anew."""
    num_updates: int = 1
    """Updates that the meta-gradient reaches through (L); a meta-update is L + 1 updates of the agents."""
    lifespan: int | None = None
    """Updates after which an agent makes room for a newborn in another task; None is never."""
    outer: Literal["policy_gradient", "bootstrap"] = "policy_gradient"
    """The meta-objective: the actor-critic's at the outer discount and λ, or the distance to a target."""
    num_target_updates: int = 1
    """Updates from the agent to the target of `bootstrap`; the last one climbs the outer objective."""
    tasks_per_chunk: int | None = None
    """Lives whose meta-gradient is worked on at a time; as in `learners.gradient`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_agents", "num_updates", "num_target_updates"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("lifespan", "tasks_per_chunk"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)
        checks.choice("outer", self.outer, ("policy_gradient", "bootstrap"))


class State(NamedTuple):
    """The state of the slow loop: meta-parameters, lives and their scores."""

    meta: Meta
    lives: Life
    """``[M]``."""
    scores: Score
    """``[M, N]``."""
    optimizer: Any
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""


class Window(NamedTuple):
    """The part of one life that a meta-update sees; all of it is data."""

    agent: Agent
    """Before the first update."""
    trajectories: Trajectory
    """``[L + 1, N, T]``; the last one is held out of the updates."""
    target: Any
    """Parameters of the policy to match; None without one."""
    matching: Any
    """``[N, T]``, where to match it."""


@checks.constructor(**HYPER_RANGES)
def meta_gradient(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    value: Value | None = None,
    optimizer: Optimizer = ADAM,
) -> MetaAlgorithm:
    """Meta-gradients on a family of tasks.

    ``return/before`` and ``return/after`` are means over the streams in which an episode has ended, of each the
    last one; ``episodes/before`` and ``episodes/after`` count those streams. Where they are 0, the mean is 0
    and says nothing.

    Args:
        family: The tasks' family; ``step`` is given its tasks, as many as ``config.num_agents``.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The agents' policy; None builds the one that ``config.policy`` names.
        value: Their values; None builds tanh networks.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range; ``step`` is given another number of tasks.
    """
    parts = learners.actor_critic_learner(family, config, policy=policy, value=value)
    learner, distribution = parts.learner, parts.distribution
    world: dict[str, Any] = dict(learner=learner, env=family.env)
    acting: dict[str, Any] = dict(num_steps=config.num_steps, unroll=config.unroll)

    def objective(params: dict, meta: Meta, window: Window) -> jax.Array:
        """The meta-objective in one life, ``[]``, live in the learned ``params`` through L updates."""
        meta = meta._replace(params=params)
        learned_from, held_out = (
            jax.tree.map(lambda x, part=part: x[part], window.trajectories)
            for part in (slice(-1), -1)
        )
        agent, _ = jax.lax.scan(
            # The key is for learners that draw in their updates; this one does not.
            lambda agent, data: (learner.update(jax.random.key(0), meta, agent, data), None),
            window.agent,
            learned_from,
        )

        def distance(old: Params, new: Params, data: Trajectory) -> jax.Array:
            data, good = without_broken_streams(data)
            return mean_kl(distribution(old, data), distribution(new, data), good)

        now, before = agent.params["policy"], window.agent.params["policy"]
        penalty = meta.hyper.outer_kl_cost * distance(now, before, held_out)
        if config.outer == "policy_gradient":
            return parts.outer_loss(agent.params, held_out, meta.hyper) + penalty
        return distance(window.target, now, window.matching) + penalty

    def bootstrap(
        key: jax.Array, meta: Meta, task: Task, agent: Agent, streams: Stream, data: Trajectory
    ) -> tuple[Params, Trajectory]:
        """A policy that `num_target_updates` more updates lead to, and what the last one learned from."""

        def onward(carry: tuple, key: jax.Array) -> tuple:
            agent, streams, data = carry
            update_key, act_key = jax.random.split(key)
            agent = learner.update(update_key, meta, agent, data)
            streams, data = rollouts.experience(
                act_key, meta, task, agent, streams, **world, **acting
            )
            return (agent, streams, data), None

        keys = jax.random.split(key, config.num_target_updates)[1:]
        (agent, _, data), _ = jax.lax.scan(onward, (agent, streams, data), keys)
        gradient = jax.grad(parts.outer_loss)(agent.params, data, meta.hyper)
        target = parts.moved(agent, gradient, learned_hyper(meta).step_size)
        return target.params["policy"], data

    def renew(
        key: jax.Array, meta: Meta, life: Life, score: Score, task: Task
    ) -> tuple[Life, Score]:
        lifespan = config.lifespan or NO_END
        over = life.age >= lifespan
        life = lifelong.renewed(key, meta, life, task, lifespan=lifespan, **world)
        fresh = lifelong.no_score(config.num_streams)
        return life, jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, score)

    def live(key: jax.Array, meta: Meta, life: Life) -> tuple[Life, Window]:
        """L updates, and what is seen after them."""
        live_key, act_key, target_key = jax.random.split(key, 3)
        born = life.agent
        life, history = lifelong.live(
            live_key, meta, life, num_updates=config.num_updates, **world, **acting
        )
        streams, held_out = rollouts.experience(
            act_key, meta, life.task, life.agent, life.streams, **world, **acting
        )
        target = matching = None
        if config.outer == "bootstrap":
            target, matching = bootstrap(target_key, meta, life.task, life.agent, streams, held_out)
        trajectories = jax.tree.map(
            lambda past, now: jnp.concatenate([past, now[None]]), history.trajectories, held_out
        )
        window = Window(born, trajectories, target, matching)
        return life._replace(streams=streams), jax.lax.stop_gradient(window)

    def learn(key: jax.Array, meta: Meta, life: Life, data: Trajectory) -> Life:
        agent = learner.update(key, meta, life.agent, data)
        return life._replace(agent=agent, age=life.age + 1)

    def over(lives: Life, which: jax.Array) -> Life:
        """``lives [M]``, of which some (bool ``[M]``) make room at the next step."""
        return lives._replace(age=jnp.where(which, config.lifespan or NO_END, lives.age))

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta_key, task_key, birth_key = jax.random.split(key, 3)
        meta = parts.init(meta_key, hyper)
        tasks = sample_tasks(task_key, family, config.num_agents, split="train")
        lives = jax.vmap(
            lambda key, task: lifelong.birth(
                key, meta, task, num_streams=config.num_streams, **world
            )
        )(jax.random.split(birth_key, config.num_agents), tasks)
        scores = jax.vmap(lambda _: lifelong.no_score(config.num_streams))(lives.age)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        return State(meta, lives, scores, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        if num_tasks != config.num_agents:
            raise ValueError(
                f"num_tasks={num_tasks} must be num_agents={config.num_agents}: a step is given a task "
                "for each life, should it begin anew"
            )
        keys = [jax.random.split(key, num_tasks) for key in jax.random.split(key, 4)]
        meta, lives = state.meta, state.lives
        # An agent that is not finite would be left out for ever: its time is up.
        lives = over(lives, ~meta_updates.finite_tasks(lives.agent))
        lives, scores = jax.vmap(renew, in_axes=(0, None, 0, 0, 0))(
            keys[0], meta, lives, state.scores, tasks
        )
        lives, windows = jax.vmap(live, in_axes=(0, None, 0))(keys[1], meta, lives)
        gradient, metrics = meta_updates.meta_gradient(
            lambda params, _, window: (objective(params, meta, window), {}),
            meta.params,
            keys[2],
            windows,
            tasks_per_chunk=config.tasks_per_chunk,
        )
        applied = is_applicable(metrics, num_tasks)
        params, optimizer_state = meta_updates.guarded_update(
            outer_optimizer(optimizer, meta.hyper),
            gradient,
            state.optimizer,
            meta.params,
            apply=applied,
        )
        meta = meta._replace(params=params)
        held_out = jax.tree.map(lambda x: x[:, -1], windows.trajectories)
        lives = jax.vmap(learn, in_axes=(0, None, 0, 0))(keys[3], meta, lives, held_out)
        # And so is that of one to whom its task shows nothing but broken numbers.
        lives = over(lives, ~jnp.any(jax.vmap(finite_streams)(held_out), axis=1))
        before, scores = scores, jax.vmap(_tally)(scores, windows.trajectories)
        windows_seen = config.num_updates + 1
        if config.outer == "bootstrap":
            windows_seen += config.num_target_updates - 1
        h = learned_hyper(meta)
        metrics |= {f"learned/{name}": getattr(h, name) for name in config.learns}
        for name, score in {"before": before, "after": scores}.items():
            metrics[f"return/{name}"], metrics[f"episodes/{name}"] = lifelong.mean_return(score)
        metrics |= {
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "skipped_streams": skipped_streams(windows.trajectories),
            "env_steps": jnp.asarray(
                num_tasks * config.num_streams * config.num_steps * windows_seen, jnp.int32
            ),
        }
        return State(
            meta, lives, scores, optimizer_state, state.num_updates + applied.astype(jnp.int32)
        ), metrics

    return MetaAlgorithm(init, step, learner)


def _tally(scores: Score, trajectories: Trajectory) -> Score:
    """``[N]`` scores after ``[K, N, T]``."""
    reward, last = (
        jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
        for x in (trajectories.reward, trajectories.last)
    )
    return jax.vmap(lifelong.tally)(scores, reward, last)
