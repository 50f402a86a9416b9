"""Transformations of actions: permuted, remapped, flipped, rotated, sticky."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform.laws import assignment, number
from jaxmeta.tasks.transform.wrappers import (
    Transformed,
    TransformedParams,
    Wrapper,
    box,
    carried,
    inner_return,
    transformed,
    warn_of_no_variety,
)
from jaxmeta.types import Task


@dataclasses.dataclass(frozen=True)
class RemappedActions(Transformed):
    """Actions are buttons; ``drawn[button]``, int32 ``[num_buttons]``, is the action of a button."""

    num_buttons: int
    """The number of buttons."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.arange(self.num_buttons, dtype=jnp.int32) % self.env.action_space().n

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn[action]

    def action_space(self, params: Task | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_buttons)


@checks.arguments
def permuted_actions(family: TaskFamily) -> TaskFamily:
    """The family with its discrete actions permuted, so that an agent must find out what each button does.

    With three actions or more the splits have no permutation in common. Out of distribution the
    last button does action 0; in train and test it never does. Train draws the even permutations
    and test the odd ones, all with equal probabilities. So 3 actions give 2, 2 and 2 tasks, 4 give
    9, 9 and 6, and 6 give 300, 300 and 120. Two actions have two permutations, which every split
    draws.
    """
    num_actions = _num_actions(family)
    if num_actions == 1:
        warn_of_no_variety(family, "one action has one order")
    return _remapped(family, num_actions, "permuted_actions")


@checks.arguments
def remapped_actions(family: TaskFamily, *, num_buttons: int) -> TaskFamily:
    """The family with more buttons than actions; each button does one action, and each action has a button.

    The splits have no mapping in common, as in `permuted_actions`. Here the permutation is the
    order in which the actions first occur among the buttons.

    Args:
        family: A family with discrete actions.
        num_buttons: Number of buttons, at least the number of actions.
    """
    num_buttons = checks.at_least("num_buttons", num_buttons, _num_actions(family))
    return _remapped(family, num_buttons, "remapped_actions")


def _remapped(family: TaskFamily, num_buttons: int, prefix: str) -> TaskFamily:
    num_actions = _num_actions(family)

    def button(drawn: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.argmax(drawn == action).astype(jnp.int32)

    return transformed(
        family,
        RemappedActions(family.env, num_buttons),
        lambda key, inner, split: assignment(key, num_actions, num_buttons, split),
        prefix=prefix,
        optimal_action=carried(family.optimal_action, act=button),
        optimal_return=inner_return(family),
        expert_action=carried(family.expert_action, act=button),
    )


@dataclasses.dataclass(frozen=True)
class FlippedActions(Transformed):
    """Continuous actions are mirrored at the middle of their nominal range (see `boxes`) if ``drawn``, ±1, is negative.

    The result is clipped to the bounds.
    """

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(self.action_space().shape)

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        space = self.action_space()
        low, high = boxes.nominal(space)
        mirrored = jnp.asarray(low + high, action.dtype) - action
        return boxes.clip(jnp.where(params.drawn < 0, mirrored, action), space)


@checks.arguments
def flipped_actions(family: TaskFamily) -> TaskFamily:
    """The family with the sign of each continuous action drawn, about the middle of its nominal range (see `boxes`).

    With three dimensions or more the splits have no signs in common. Out of distribution the last
    dimension is flipped; in train and test it never is. Among the others train flips an even number
    and test an odd number. With fewer dimensions all splits draw from all signs.
    """
    shape = box(family.action_space, family, "actions").shape
    size = math.prod(shape)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        flipped = jax.random.bernoulli(key, shape=(size,))
        if size >= 3:
            flipped = flipped.at[-1].set(split == "out_of_distribution")
            odd = jnp.sum(flipped) % 2 == 1
            if split != "out_of_distribution":
                flipped = flipped.at[0].set(flipped[0] ^ odd ^ (split == "test"))
        return jnp.where(flipped, -1.0, 1.0).reshape(shape)

    env = FlippedActions(family.env)

    def flip(drawn: jax.Array, action: jax.Array) -> jax.Array:
        return env.act(action, TransformedParams(None, drawn))

    return transformed(
        family,
        env,
        draw,
        prefix="flipped_actions",
        optimal_action=carried(family.optimal_action, act=flip),
        optimal_return=inner_return(family),
        expert_action=carried(family.expert_action, act=flip),
    )


@dataclasses.dataclass(frozen=True)
class RotatedActions(Transformed):
    """Each pair of action dimensions is turned by its ``drawn`` angle, in radians, ``[A // 2]``.

    Dimensions are measured from the middle of their nominal ranges (see `boxes`), in units of half
    the width. The result is clipped to the bounds.
    """

    @property
    def nothing(self) -> jax.Array:
        return jnp.zeros(self.action_space().shape[0] // 2)

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        return _turned(action, params.drawn, self.action_space())


@checks.arguments
def rotated_actions(family: TaskFamily, *, max_angle: float = math.pi / 2) -> TaskFamily:
    """The family with its continuous actions rotated: each pair of dimensions by a drawn angle.

    Angles are uniform in ``[-max_angle, max_angle]``; out of distribution all lie outside, by up to
    half of ``max_angle``. Rotated actions do not reach the corners of a range, so the result has no
    optimal controller.

    Args:
        family: A family with at least two continuous actions ``[A]``.
        max_angle: Largest angle in radians, above 0 and at most 2 π / 3, so that other rotations
            remain out of distribution.

    Raises:
        ValueError: actions are not in a `Box` of at least two numbers.
    """
    max_angle = checks.between("max_angle", max_angle, 1e-6, 2 * math.pi / 3)
    space = box(family.action_space, family, "actions")
    shape = space.shape
    boxes.scaled(f"family={family.name!r}, action_space", space)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"family={family.name!r} has actions of shape {shape}, not [A], A >= 2")

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        keys = jax.random.split(key, shape[0] // 2)
        draw_one = functools.partial(number, low=-max_angle, high=max_angle, split=split)
        return jax.vmap(draw_one)(keys)

    def back(drawn: jax.Array, action: jax.Array) -> jax.Array:
        return _turned(action, -drawn, space)

    return transformed(
        family,
        RotatedActions(family.env),
        draw,
        prefix="rotated_actions",
        expert_action=carried(family.expert_action or family.optimal_action, act=back),
    )


@struct.dataclass
class StickyState:
    """The state within and the last action."""

    inner: Any
    """The state of the environment within."""
    action: jax.Array
    """``[*action_shape]``, the last action."""
    first: jax.Array
    """``[]``, bool: there is no last action yet."""


@dataclasses.dataclass(frozen=True)
class StickyActions(Transformed):
    """With the ``drawn`` probability the last action is repeated instead of the chosen one."""

    ends_by = Wrapper.ends_by  # the overridden methods end no episode

    @property
    def nothing(self) -> jax.Array:
        return jnp.zeros(())

    def reset_env(self, key: jax.Array, params: TransformedParams) -> tuple[jax.Array, StickyState]:
        obs, inner = self.env.reset_env(key, params.inner)
        space = self.action_space()
        none = jnp.zeros(space.shape, space.dtype)
        return obs, StickyState(inner, none, jnp.ones((), bool))

    def step_env(
        self, key: jax.Array, state: StickyState, action: jax.Array, params: TransformedParams
    ) -> tuple[jax.Array, StickyState, jax.Array, jax.Array, dict]:
        key, stick_key = jax.random.split(key)
        sticks = ~state.first & jax.random.bernoulli(stick_key, params.drawn)
        taken = jnp.where(sticks, state.action, action).astype(state.action.dtype)
        obs, inner, *rest = self.env.step_env(key, state.inner, taken, params.inner)
        return obs, StickyState(inner, taken, jnp.zeros((), bool)), *rest

    def state_within(self, state: StickyState) -> Any:
        return state.inner


@checks.arguments
def sticky_actions(
    family: TaskFamily, *, low: float = 0.0, high: float = 0.25, outside: float = 0.4
) -> TaskFamily:
    """The family with sticky actions: with a drawn probability the last action is repeated.

    Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5. The first action
    of an episode is always taken. Controllers become experts, because they ignore the repeated
    action.

    Args:
        family: Any family.
        low: The smallest probability in train and test.
        high: The largest probability in train and test, and the smallest out of distribution.
        outside: The largest probability out of distribution.

    Raises:
        ValueError: the probabilities are not in the order ``low <= high <= outside``.
    """
    high = checks.between("high", high, 0.0, 1.0)
    low = checks.between("low", low, 0.0, high)
    outside = checks.between("outside", outside, 0.0, 1.0)
    if outside < high:
        raise ValueError(f"outside={outside} must be at least high={high}")
    if not isinstance(family.action_space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"family={family.name!r} has actions in {family.action_space}, where a Box or Discrete is needed"
        )

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        ends = (high, outside) if split == "out_of_distribution" else (low, high)
        return jax.random.uniform(key, minval=ends[0], maxval=ends[1])

    return transformed(
        family,
        StickyActions(family.env),
        draw,
        prefix="sticky_actions",
        expert_action=carried(family.expert_action or family.optimal_action),
    )


def _num_actions(family: TaskFamily) -> int:
    space = family.action_space
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"family={family.name!r} has actions in {space}, where discrete actions are needed"
        )
    return space.n


def _turned(action: jax.Array, angles: jax.Array, space: spaces.Box) -> jax.Array:
    """``action [A]`` with each pair turned by its angle ``[A // 2]``, in units of the space, clipped to its bounds."""
    nominal = boxes.nominal(space)
    middle, width = (jnp.asarray(x, action.dtype) for x in (nominal.middle, nominal.half_width))
    x = (action - middle) / width
    angles = angles.astype(action.dtype)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = x[: 2 * angles.size].reshape(-1, 2)
    turned = jnp.stack(
        [cos * pairs[:, 0] - sin * pairs[:, 1], sin * pairs[:, 0] + cos * pairs[:, 1]], axis=1
    )
    return boxes.clip(middle + width * x.at[: 2 * angles.size].set(turned.reshape(-1)), space)
