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

Use it to tune γ, λ, costs, a step size or an added reward while agents live. It costs a backward pass through the updates of a
window, and short windows bias it.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.meta_gradient import Config, Hyper, meta_gradient

family = tasks.make("cartpole", horizon=50)
algorithm = meta_gradient(family, Config(num_agents=4, learns=("discount", "step_size")), Hyper(discount=0.9))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics)
```
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners, meta_updates
from jaxmeta.estimators.streams import finite_streams, without_broken_streams
from jaxmeta.learners.actor_critic import (
    HYPER_RANGES,
    ActorCriticLearner,
    Hyper,
    Meta,
    learned_hyper,
)
from jaxmeta.learners.gradient import mean_kl, skipped_streams
from jaxmeta.meta_updates.outer_loop import PARAMS, Optimizer, descend, outer_optimizer
from jaxmeta.meta_updates.windows import Window
from jaxmeta.networks.policies import Policy
from jaxmeta.networks.values import Value
from jaxmeta.rollouts import Setup, collect, lifelong
from jaxmeta.rollouts.lifelong import Life, Score
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.tasks.keys import quick
from jaxmeta.types import History, MetaAlgorithm, Params, Task, Trajectory

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
    """The learned numbers η: the input of the agents."""
    lives: Life
    """``[M]``."""
    scores: Score
    """``[M, N]``."""
    optimizer: Any
    """The optimiser's state."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""


class Seen(NamedTuple):
    """The result of one life's window."""

    gradient: Params
    """Of the meta-objective in η."""
    loss: jax.Array
    """``[]``."""
    life: Life
    """After L updates."""
    before: Score
    """``[N]``, before the window."""
    after: Score
    """``[N]``, after it."""
    held_out: Trajectory
    """``[N, T]``, the experience that the L updates have not seen."""
    skipped_streams: jax.Array
    """``[]``, int32."""


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
    _refuse_ignored(config, hyper)
    parts = learners.actor_critic_learner(family, config, policy=policy, value=value)
    setup = Setup(parts.learner, family.env, config.num_streams, config.num_steps, config.unroll)
    window = Window(setup, config.lifespan or NO_END, config.num_updates)
    lives = Lives(parts, window, config)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta_key, task_key, birth_key = jax.random.split(key, 3)
        meta = parts.init(meta_key, hyper)
        tasks = sample_tasks(task_key, family, config.num_agents, split="train")
        keys = jax.random.split(birth_key, config.num_agents)
        born = jax.vmap(window.birth, (0, None, 0))(keys, meta, tasks)
        scores = jax.vmap(lambda _: lifelong.no_score(config.num_streams))(born.age)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        return State(meta, born, scores, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        key = quick(key)
        num_tasks = lifelong.num_lives(tasks, config.num_agents)
        renew_keys, live_keys, _, learn_keys = (
            jax.random.split(key, num_tasks) for key in jax.random.split(key, 4)
        )
        # An agent that is not finite would be left out for ever: its time is up.
        broken = ~meta_updates.finite_tasks(state.lives.agent)
        begun = lifelong.aged(state.lives, broken, window.lifespan)
        seen = meta_updates.map_tasks(
            lambda inputs: lives.seen(state.meta, *inputs),
            (renew_keys, live_keys, begun, state.scores, tasks),
            tasks_per_chunk=config.tasks_per_chunk,
        )
        good = meta_updates.finite_tasks((seen.gradient, seen.loss))
        gradient = meta_updates.masked_mean(seen.gradient, good)
        norm = optax.tree.norm(gradient)
        applied = jnp.any(good) & jnp.isfinite(norm)
        transform = outer_optimizer(optimizer, state.meta.hyper)
        state = descend(state, gradient, PARAMS, transform, apply=applied)
        meta = state.meta
        after = jax.vmap(lives.learn, (0, None, 0, 0))(learn_keys, meta, seen.life, seen.held_out)
        # The task of a blind agent shows it nothing but broken numbers: its time is up, too.
        blind = ~jnp.any(jax.vmap(finite_streams)(seen.held_out), axis=1)
        after = lifelong.aged(after, blind, window.lifespan)
        metrics = _returns(seen) | {f"learned/{x}": y for x, y in learned_numbers(meta, config)}
        return state._replace(lives=after, scores=seen.after), metrics | {
            "meta_grad_norm": norm,
            "skipped_tasks": num_tasks - jnp.sum(good),
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "skipped_streams": jnp.sum(seen.skipped_streams, dtype=jnp.int32),
            "env_steps": jnp.asarray(num_tasks * lives.env_steps, jnp.int32),
        }

    return MetaAlgorithm(init, step, parts.learner, setup.collects())


@dataclasses.dataclass(frozen=True)
class Lives:
    """One life in a window, and the meta-objective of it."""

    parts: ActorCriticLearner
    """The learner and its functions."""
    window: Window
    """The part of a lifetime that a meta-update sees."""
    config: Config
    """Sizes, counts and choices."""

    @property
    def env_steps(self) -> int:
        """Steps of one life in a window."""
        rounds = self.config.num_updates + 1
        if self.config.outer == "bootstrap":
            rounds += self.config.num_target_updates - 1
        return self.window.setup.env_steps * rounds

    def seen(
        self,
        meta: Meta,
        renew_key: jax.Array,
        live_key: jax.Array,
        life: Life,
        score: Score,
        task: Task,
    ) -> Seen:
        """L more updates of ``life``, or of a newborn in ``task``, and the gradient of the meta-objective."""
        over = life.age >= self.window.lifespan
        fresh = lifelong.no_score(self.config.num_streams)
        before = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, score)
        begun = self.window.renewed(renew_key, meta, life, task)
        live_key, show_key, target_key = jax.random.split(live_key, 3)

        def loss(params: dict) -> tuple[jax.Array, tuple]:
            learned = meta._replace(params=params)
            life, history = lifelong.live_and_show(
                (live_key, show_key),
                learned,
                begun,
                setup=self.window.setup,
                num_updates=self.config.num_updates,
            )
            return self.objective(target_key, learned, life, history), (life, history.trajectories)

        (total, (life, data)), gradient = jax.value_and_grad(loss, has_aux=True)(meta.params)
        held_out = jax.tree.map(lambda x: x[-1], data)
        after = _tally(before, data)
        return Seen(gradient, total, life, before, after, held_out, skipped_streams(data))

    def objective(self, key: jax.Array, meta: Meta, life: Life, history: History) -> jax.Array:
        """The meta-objective ``[]`` of the agent after L updates, on experience ``[L + 1]`` that ends with its own."""
        before = jax.tree.map(lambda x: x[0], history.agent.params["policy"])
        now, held_out = life.agent.params, jax.tree.map(lambda x: x[-1], history.trajectories)
        penalty = meta.hyper.outer_kl_cost * self.distance(now["policy"], before, held_out)
        if self.config.outer == "policy_gradient":
            return self.parts.outer_loss(now, held_out, meta.hyper) + penalty
        target, matching = self.bootstrap(key, *jax.lax.stop_gradient((meta, life)), held_out)
        return self.distance(target, now["policy"], matching) + penalty

    def bootstrap(
        self, key: jax.Array, meta: Meta, life: Life, data: Trajectory
    ) -> tuple[Params, Trajectory]:
        """A policy that `num_target_updates` more updates lead to, and what the last one learned from."""
        learner, setup = self.parts.learner, self.window.setup

        def onward(carry: tuple, key: jax.Array) -> tuple:
            agent, streams, data = carry
            update_key, act_key = jax.random.split(key)
            agent = learner.update(update_key, meta, agent, data)
            streams, data = collect(act_key, meta, life.task, agent, streams, setup=setup)
            return (agent, streams, data), None

        keys = jax.random.split(key, self.config.num_target_updates)[1:]
        (agent, _, data), _ = jax.lax.scan(onward, (life.agent, life.streams, data), keys)
        gradient = jax.grad(self.parts.outer_loss)(agent.params, data, meta.hyper)
        target = self.parts.moved(agent, gradient, learned_hyper(meta).step_size)
        return jax.lax.stop_gradient((target.params["policy"], data))

    def distance(self, old: Params, new: Params, data: Trajectory) -> jax.Array:
        """KL(old || new) of policies on ``data [N, T]``, ``[]``."""
        data, good = without_broken_streams(data)
        distribution = self.parts.distribution
        return mean_kl(distribution(old, data), distribution(new, data), good)

    def learn(self, key: jax.Array, meta: Meta, life: Life, data: Trajectory) -> Life:
        """The life after one more update."""
        agent = self.parts.learner.update(key, meta, life.agent, data)
        return life._replace(agent=agent, age=life.age + 1)


def learned_numbers(meta: Meta, config: Config) -> list[tuple[str, jax.Array]]:
    """The numbers that are learned, by name, each ``[]``."""
    now = learned_hyper(meta)
    return [(name, getattr(now, name)) for name in config.learns]


def _returns(seen: Seen) -> dict[str, jax.Array]:
    """Mean returns before and after the windows ``[M]``, and the numbers of streams that they are of."""
    metrics = {}
    for name, score in {"before": seen.before, "after": seen.after}.items():
        metrics[f"return/{name}"], metrics[f"episodes/{name}"] = lifelong.mean_return(score)
    return metrics


def _refuse_ignored(config: Config, hyper: Hyper) -> None:
    """Raises ValueError if a setting is not at its default and has no effect."""
    if config.outer == "policy_gradient":
        checks.ignored(config, ("num_target_updates",), "with outer='policy_gradient'")
    if not config.intrinsic_reward:
        checks.ignored(hyper, ("intrinsic_scale",), "without intrinsic_reward")
    if "discount" not in config.learns:
        checks.ignored(hyper, ("min_discount",), "where learns does not name discount")


def _tally(scores: Score, trajectories: Trajectory) -> Score:
    """``[N]`` scores after ``[K, N, T]``."""
    reward, last = (
        jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
        for x in (trajectories.reward, trajectories.last)
    )
    return jax.vmap(lifelong.tally)(scores, reward, last)
