"""Decision-pretrained networks (DPT): predict the best action of the task from a context, and act as posterior sampling does.

Lee et al. 2023, "Supervised pretraining can learn in-context reinforcement learning". In training the task is known, and so is
its best action $a^*$ at every observation. The network sees only a context D: what some behaviour did and got in that task. It learns

$$L = -\\mathrm{mean}_{j=0}^{T-1} \\log π(a^*(s_j; τ) | s_j, D_{1:j})$$

on every prefix of the context of T steps, from the empty one to all steps but the last. The minimum is the posterior distribution of the best action,
$P(a^* | s, D)$, if the behaviour chose its actions without knowing the task. Drawing from it is posterior (Thompson)
sampling; taking its mode is greedy.

The behaviour here is the learner itself, random actions in a share of the tasks (`Config.random_share`). So the contexts in
training are those that the learner meets when it acts, and random ones beside them.

Use it where the best action of a known task is cheap: bandits, goals, anything with an ``optimal_action`` or an ``expert_action``.
It learns from classification alone, with no reward to propagate, so it is stable and quick. It explores as posterior sampling does,
which is good in long trials and not optimal in short ones.

```python
import jax
from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.decision_pretrained import Config, decision_pretrained
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
algorithm = decision_pretrained(family, Config(num_episodes=1), memory=gru(32))
run = training.train(algorithm, family, training.Config(meta_updates=100, num_tasks=512))

held_out = tasks.sample_tasks(jax.random.key(1), family, 1000, split="test")
trials = evaluation.trials(
    jax.random.key(2), run.state.meta, held_out, learner=algorithm.learner, env=family.env, num_steps=10
)
print(trials.reward.sum(axis=1).mean())
```
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, rollouts
from jaxmeta.learners import in_context, recurrent
from jaxmeta.learners.in_context import Hyper
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.actor_critic import ActorCritic
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks import signatures
from jaxmeta.tasks.family import Controller, TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Learner, MetaAlgorithm, Task, TimeStep


@dataclasses.dataclass(frozen=True)
class Config(in_context.Config):
    """Settings of decision-pretrained networks that are fixed when the program is compiled: sizes, counts and choices."""

    num_streams: int = 1
    """Contexts of a task in a meta-update (N)."""
    random_share: float = 0.5
    """Share of the tasks whose contexts are of random actions, from 0 to 1; in the rest the learner acts. The returns among the
    metrics are of all contexts."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_streams", "unroll"):
            checks.at_least(name, getattr(self, name), 1)
        checks.between("random_share", self.random_share, 0, 1)


@checks.constructor()
def decision_pretrained(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    expert: Controller | None = None,
    memory: Memory | None = None,
    network: ActorCritic | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """A decision-pretrained network on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``.
        expert: ``(task, obs) -> action``, the actions to predict; None takes the family's ``optimal_action``, or else its
            ``expert_action``.
        memory: The recurrent network, for example ``gru(64)``; None makes the one that ``config`` names.
        network: The policy with its memory; None puts a policy on ``memory``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: the family has no expert and none is given; a value of ``hyper`` is out of range; a setting has no effect
            beside the others; in ``step``, the number of trials is no multiple of ``config.num_minibatches``.
        tasks.InvalidEnvironment: ``expert`` gives no action of the family.
    """
    label = expert or family.optimal_action or family.expert_action
    if label is None:
        raise ValueError(
            f"family {family.name!r} has no optimal_action and no expert_action: give expert=, (task, obs) -> action"
        )
    if expert is not None:
        signatures.check_controller("expert", expert, family)
    parts = in_context.in_context_learner(
        family,
        config,
        hyper,
        num_streams=config.num_streams,
        memory=memory,
        network=network,
        optimizer=optimizer,
    )
    num_steps = config.num_episodes * family.horizon
    behaviour = roll_in(parts.recurrent.learner, family, config.random_share)
    setup = rollouts.Setup(behaviour, family.env, config.num_streams, num_steps, config.unroll)

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        act_key, learn_key = jax.random.split(quick(key))
        recorded = recurrent.trials_of(act_key, state.meta, tasks, setup=setup)
        data, counted = recurrent.counted_steps(recorded, config.num_episodes)
        every = jax.tree.map(lambda x: jnp.repeat(x, config.num_streams, axis=0), tasks)
        best = jax.vmap(jax.vmap(label, (None, 0)))(every, data.timestep.obs)
        best, counted = in_context.predictable(best.astype(data.action.dtype), counted, family)
        state, metrics = parts.imitate(learn_key, state, data, best, counted)
        metrics |= recurrent.trial_metrics(recorded, counted, config.num_episodes)
        metrics["env_steps"] = jnp.asarray(counted.size, jnp.int32)
        return state, metrics

    return MetaAlgorithm(parts.init, step, parts.recurrent.learner, parts.recurrent.lifetime)


def roll_in(learner: Learner, family: TaskFamily, random_share: float) -> Learner:
    """``learner``, with random actions in ``random_share`` of the tasks."""

    def init(key: jax.Array, meta: Any) -> tuple[jax.Array, Any]:
        share_key, agent_key = jax.random.split(key)
        return jax.random.bernoulli(share_key, random_share), learner.init(agent_key, meta)

    def act(
        key: jax.Array, meta: Any, agent: Any, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        random_key, act_key = jax.random.split(key)
        at_random, agent = agent
        action, log_prob, memory = learner.act(act_key, meta, agent, memory, timestep)
        other = family.random_action(random_key).astype(action.dtype)
        return jnp.where(at_random, other, action), log_prob, memory

    return Learner(init, learner.memory, act, lambda key, meta, agent, data: agent)
