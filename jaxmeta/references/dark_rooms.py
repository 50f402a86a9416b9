"""Agents for dark rooms: posterior sampling, and one that is told where the key and the door are."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.references.posteriors import posterior_goal
from jaxmeta.tasks import dark_room, gridnavi, gridworld
from jaxmeta.types import Learner, TimeStep

PRIORS = ("train", "all")
DRAWS = ("episode", "refuted", "step")


class Searched(NamedTuple):
    """The memory of `dark_room_sampling`: what a stream has shown, and what the agent makes of it."""

    reward: jax.Array
    """``[C]``, total reward of the steps that ended in each cell."""
    visits: jax.Array
    """``[C]``, float: the number of steps that ended in each cell."""
    belief: jax.Array
    """``[C]``, the probabilities from which goals are drawn."""
    goal: jax.Array
    """``[]``, int32: the cell that the agent goes to."""
    cell: jax.Array
    """``[]``, int32: the cell in which the agent last acted; -1 before the first step."""


def dark_room_sampling(
    *,
    size: int = 9,
    prior: Literal["train", "all"] = "train",
    split_seed: int = 0,
    draw: Literal["episode", "refuted", "step"] = "episode",
    within_episode: bool = True,
) -> Learner:
    """A posterior-sampling learner for Dark Room: it goes to a goal that it draws from its posterior.

    With ``draw="episode"`` it is the algorithm of Osband et al. 2013, "(More) efficient
    reinforcement learning via posterior sampling": it stays in the cell drawn until the episode
    ends, whether or not that cell pays. The posterior is `posterior_goal`, over the whole stream.
    ``draw="step"`` draws each action from `posterior_action`, as a perfect decision-pretrained
    transformer does. It wanders, since it forgets at every step where it wanted to go. The memory is
    a stream's, and a stream is one task.

    Args:
        size: Cells along a side, at least 2.
        prior: Goals that the agent expects, uniformly: ``"train"``, the training goals of
            `tasks.dark_room`, or ``"all"`` cells.
        split_seed: The family's, which tells training goals from held-out ones.
        draw: When a goal is drawn: ``"episode"``, at the start of each; ``"refuted"``, also as
            soon as the last one has probability 0; ``"step"``, at each step.
        within_episode: Whether draws use what the current episode has shown, or earlier episodes
            alone. It makes no difference to ``draw="episode"``.
    """
    checks.choice("draw", draw, DRAWS)
    checks.field("within_episode", within_episode, bool)
    expected = room_prior(size=size, prior=prior, split_seed=split_seed)
    after = jnp.asarray(gridworld.successors(size))

    def memory(meta: tuple) -> Searched:
        zeros = jnp.zeros(size**2)
        cell = jnp.full((), -1, jnp.int32)
        return Searched(zeros, zeros, expected, jnp.zeros((), jnp.int32), cell)

    def act(
        key: jax.Array, meta: tuple, agent: tuple, seen: Searched, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Searched]:
        # Where the last step ended is not observed if an episode ended there.
        begun = seen.cell >= 0
        ended = jax.nn.one_hot(after[seen.cell, timestep.action.astype(jnp.int32)], size**2)
        visits = seen.visits + jnp.where(begun, ended, 0.0)
        reward = seen.reward + jnp.where(begun, ended, 0.0) * timestep.reward
        now = posterior_goal(reward, visits, expected)
        belief = jnp.where(timestep.first | within_episode, now, seen.belief)
        drawn = jax.random.categorical(key, jnp.log(belief)).astype(jnp.int32)
        again = {
            "episode": timestep.first,
            "refuted": timestep.first | (belief[seen.goal] == 0),
            "step": jnp.ones((), bool),
        }
        goal = jnp.where(again[draw], drawn, seen.goal)
        cell = dark_room.cell_of(timestep.obs, size=size)
        place = jnp.stack([goal % size, goal // size])
        action = gridnavi.towards(place, cell, size=size)
        after_act = Searched(reward, visits, belief, goal, cell)
        return action, jnp.zeros_like(timestep.reward), after_act

    return Learner(
        init=lambda key, meta: (),
        memory=memory,
        act=act,
        update=lambda key, meta, agent, trajectories: agent,
    )


def room_prior(
    *, size: int = 9, prior: Literal["train", "all"] = "train", split_seed: int = 0
) -> jax.Array:
    """The probability of each cell to be the goal before any step, ``[C]``; arguments as in `dark_room_sampling`."""
    checks.at_least("size", size, 2)
    checks.choice("prior", prior, PRIORS)
    checks.at_least("split_seed", split_seed, 0)
    if prior == "all":
        return jnp.full(size**2, 1 / size**2)
    x, y = dark_room.goals(size=size, split="train", split_seed=split_seed).T
    return jnp.zeros(size**2).at[x + size * y].set(1 / len(x))


def told_key_to_door(*, size: int = 9) -> Learner:
    """A learner that is told the task of Dark Key-to-Door: it goes to the key, then to the door.

    Its ``meta`` is the task. It is optimal. Whether it holds the key is its memory, because the
    observation does not tell.

    Args:
        size: Cells along a side, at least 2.
    """
    checks.at_least("size", size, 2)

    def act(
        key: jax.Array,
        task: dark_room.KeyToDoorParams,
        agent: tuple,
        held: jax.Array,
        timestep: TimeStep,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        held = ~timestep.first & (held | (timestep.reward > 0))
        goal = jnp.where(held, task.door, task.key)
        action = gridnavi.towards(goal, jnp.argmax(timestep.obs), size=size)
        return action, jnp.zeros_like(timestep.reward), held

    return Learner(
        init=lambda key, task: (),
        memory=lambda task: jnp.zeros((), bool),
        act=act,
        update=lambda key, task, agent, trajectories: agent,
    )
