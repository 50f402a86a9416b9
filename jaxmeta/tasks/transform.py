"""Any gymnax environment as a family, and transformations that make a family's tasks differ.

A transformation takes a family and returns one whose tasks have a part more, drawn on its own beside the
rest: which button does what, how observations are shuffled, when rewards are paid. They compose in any
order:

    family = transform.from_gymnax("Breakout-MinAtar", horizon=500)
    family = transform.sticky_actions(transform.permuted_actions(family))

The environment is put into another, its task into `TransformedParams`: the task within, and what was
drawn. A split of the result draws every part from that split, so that out of distribution all of them are
outside. Controllers that are told the task are carried along where the transformation can be undone.
What changes the dynamics leaves an optimal controller a good one: it becomes the ``expert_action``.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import SPLITS, Controller, Sampler, TaskFamily
from jaxmeta.types import Task

UNSUPPORTED = {"MNISTBandit-bsuite": "its constructor downloads the images"}
"""Environments registered in gymnax of which no family can be made here, and why."""

IDENTITY = {
    "BernoulliBandit-misc": ("reward_probs",),
    "DeepSea-bsuite": ("action_mapping",),
    "FourRooms-misc": ("goal",),
    "GaussianBandit-misc": ("mu",),
    "MemoryChain-bsuite": ("context", "query"),
    "MetaMaze-misc": ("goal",),
    "PointRobot-misc": ("goal",),
    "Reacher-misc": ("goal_xy",),
    "SimpleBandit-bsuite": ("rewards",),
    "Swimmer-misc": ("goal_xy", "urchin_xys"),
    "UmbrellaChain-bsuite": ("need_umbrella",),
}
"""Leaves of the state in which a gymnax environment keeps what tells one task from another, for `pinned`.

DeepSea draws its own only with the parameter ``sample_action_map``, FourRooms with ``resample_goal_pos``."""

Draw = Callable[[jax.Array, Task, str], Any]
"""``(key, task within, split) -> what the transformation adds to the task``."""


# Environments around environments


@dataclasses.dataclass(frozen=True)
class Wrapper(environment.Environment[Any, Any]):
    """An environment around another, which it leaves as it is: what is below overrides what it changes.

    Two around equal environments are equal, so that they share compiled programs.

    Attributes:
        env: The environment within.
    """

    env: Any

    @property
    def default_params(self) -> Task:
        return self.env.default_params

    def within(self, params: Task) -> Task:
        """The task of the environment within."""
        return params

    def state_within(self, state: Any) -> Any:
        """The state of the environment within."""
        return state

    def act(self, action: jax.Array, params: Task) -> jax.Array:
        """The action that the environment within takes."""
        return action

    def see(self, obs: jax.Array, params: Task) -> jax.Array:
        """What is observed for an observation within."""
        return obs

    def earn(self, reward: jax.Array, params: Task) -> jax.Array:
        """What is paid for a reward within."""
        return reward

    def reset_env(self, key: jax.Array, params: Task) -> tuple[jax.Array, Any]:
        obs, state = self.env.reset_env(key, self.within(params))
        return self.see(obs, params), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Task
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict]:
        obs, state, reward, terminated, info = self.env.step_env(
            key, state, self.act(action, params), self.within(params)
        )
        return self.see(obs, params), state, self.earn(reward, params), terminated, info

    def observe(
        self, key: jax.Array, state: Any, action: jax.Array | None, params: Task
    ) -> jax.Array:
        obs = self.env.observe(key, self.state_within(state), action, self.within(params))
        return self.see(obs, params)

    def is_truncated(self, state: Any, params: Task) -> jax.Array:
        return self.env.is_truncated(self.state_within(state), self.within(params))

    @property
    def name(self) -> str:
        return f"{type(self).__name__}{self.env.name}"

    # Spaces are those of any task; a batch of tasks would pretend to be larger.
    def action_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.action_space(self.env.default_params)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        return _observations(self.env)


@struct.dataclass
class TransformedParams:
    """The task: that of the environment within, and what the transformation adds."""

    inner: Task
    drawn: Any


@dataclasses.dataclass(frozen=True)
class Transformed(Wrapper):
    """A `Wrapper` whose task has a part of its own, in `TransformedParams`."""

    @property
    def default_params(self) -> TransformedParams:
        return TransformedParams(self.env.default_params, self.nothing)

    @property
    def nothing(self) -> Any:
        """The part of a task in which the environment is as it is within."""
        raise NotImplementedError

    def within(self, params: TransformedParams) -> Task:
        return params.inner


def _transformed(
    family: TaskFamily,
    env: Transformed,
    draw: Draw,
    *,
    prefix: str,
    optimal_action: Controller | None = None,
    optimal_return: Callable[[Task], jax.Array] | None = None,
    expert_action: Controller | None = None,
) -> TaskFamily:
    """The family with every task in `TransformedParams`; controllers are told these."""

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> TransformedParams:
            inner_key, key = jax.random.split(key)
            inner = getattr(family, split)(inner_key)
            return TransformedParams(inner, jax.tree.map(_strong, draw(key, inner, split)))

        return sample

    return TaskFamily(
        name=f"{prefix}_{family.name}",
        env=env,
        horizon=family.horizon,
        **_for_each_split(sampler),
        optimal_action=optimal_action,
        optimal_return=optimal_return,
        expert_action=expert_action,
    )


def _for_each_split(sampler: Callable[[str], Sampler]) -> dict[str, Any]:
    return {split: sampler(split) for split in SPLITS}


def _carried(
    controller: Controller | None,
    *,
    act: Callable[[Any, jax.Array], jax.Array] = lambda drawn, action: action,
    see: Callable[[Any, jax.Array], jax.Array] = lambda drawn, obs: obs,
) -> Controller | None:
    """The controller for a transformed task: ``see`` and ``act`` undo what was done to the two."""
    if controller is None:
        return None
    return lambda task, obs: act(task.drawn, controller(task.inner, see(task.drawn, obs)))


def _inner_return(family: TaskFamily) -> Callable[[Task], jax.Array] | None:
    optimal_return = family.optimal_return
    return None if optimal_return is None else lambda task: optimal_return(task.inner)


# Families from gymnax


@functools.cache
def _environment(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    """One environment for equal settings: gymnax's hash by identity, and each new one compiles anew."""
    return gymnax.make(name, **dict(settings))[0]


@struct.dataclass
class TimedState:
    """The state within, and the steps taken."""

    inner: Any
    time: jax.Array  # [], int32


@dataclasses.dataclass(frozen=True)
class TimeLimit(Wrapper):
    """Cuts an episode off after ``horizon`` steps, for environments whose parameters have no such limit."""

    horizon: int

    def reset_env(self, key: jax.Array, params: Task) -> tuple[jax.Array, TimedState]:
        obs, state = self.env.reset_env(key, params)
        return obs, TimedState(state, jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: TimedState, action: jax.Array, params: Task
    ) -> tuple[jax.Array, TimedState, jax.Array, jax.Array, dict]:
        obs, inner, *rest = self.env.step_env(key, state.inner, action, params)
        return obs, TimedState(inner, state.time + 1), *rest

    def state_within(self, state: TimedState) -> Any:
        return state.inner

    def is_truncated(self, state: TimedState, params: Task) -> jax.Array:
        return state.time >= self.horizon


def from_gymnax(name: str, *, horizon: int, **settings: Any) -> TaskFamily:
    """The family of the one default task of a registered gymnax environment, in every split.

    Args:
        name: What ``gymnax.make`` knows it by; your own, too, after ``gymnax.register``.
        horizon: Time limit of an episode, in steps. An environment may end earlier of itself.
        settings: Keyword arguments of the environment's constructor, hashable.

    Raises:
        ValueError: the name is unknown, or the horizon below 1.
        TypeError: a setting cannot be hashed.
    """
    checks.choice("name", name, gymnax.registered_envs)
    checks.at_least("horizon", horizon, 1)
    for setting, value in settings.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(f"{setting}={value!r} must be hashable: a tuple, not a list") from None
    env = _environment(name, tuple(sorted(settings.items())))
    task = env.default_params
    if hasattr(task, "max_steps_in_episode"):
        task = task.replace(max_steps_in_episode=type(task.max_steps_in_episode)(horizon))
    else:
        env = TimeLimit(env, horizon)

    def sample(key: jax.Array) -> Task:
        del key
        return jax.tree.map(_strong, task)

    return TaskFamily(
        name=name,
        env=env,
        horizon=horizon,
        train=sample,
        test=sample,
        out_of_distribution=sample,
    )


# Parameters


def parameter_fields(family: TaskFamily) -> tuple[str, ...]:
    """Names of the environment's parameters that `drawn_parameters` can draw: its scalar numbers.

    The time limit is left out. An environment need not read all of its parameters: CartPole's
    ``masscart`` is dead, what counts is the ``total_mass`` made from it.
    """
    params = jax.eval_shape(lambda: _innermost(family.train(jax.random.key(0))))
    return tuple(
        field.name
        for field in dataclasses.fields(params)
        if field.name != "max_steps_in_episode" and _is_number(getattr(params, field.name))
    )


def with_parameters(family: TaskFamily, **values: Any) -> TaskFamily:
    """The family with parameters of the environment, of the same types, set in every task.

    Raises:
        ValueError: a parameter is unknown.
    """
    params = jax.eval_shape(lambda: _innermost(family.train(jax.random.key(0))))
    for name in values:
        checks.choice("parameter", name, [field.name for field in dataclasses.fields(params)])
    fixed = {name: np.asarray(x, getattr(params, name).dtype) for name, x in values.items()}

    def sampler(split: str) -> Sampler:
        sample = getattr(family, split)
        return lambda key: _replaced(sample(key), jax.tree.map(jnp.asarray, fixed))

    return dataclasses.replace(family, **_for_each_split(sampler))


def drawn_parameters(
    family: TaskFamily,
    ranges: Mapping[str, tuple[float, float]],
    *,
    law: Literal["log_uniform", "uniform"] = "log_uniform",
) -> TaskFamily:
    """The family with parameters of the environment, its physics, drawn per task, one by one.

    Train and test draw within the ranges; out of distribution all lie outside, on either side, by up to
    a quarter of the range's width (measured as the law measures it) and never with another sign.
    Integers are uniform under either law. No part is added to the task: the parameters are already there.

    Args:
        family: Of a gymnax environment, transformed or not.
        ranges: ``{name: (low, high)}``; `parameter_fields` lists the names.
        law: ``"log_uniform"``, for positive numbers, or ``"uniform"``.

    Raises:
        ValueError: a name is unknown, a range empty, or not positive for a log-uniform law.
    """
    checks.choice("law", law, ("log_uniform", "uniform"))
    known = parameter_fields(family)
    params = jax.eval_shape(lambda: _innermost(family.train(jax.random.key(0))))
    dtypes = {name: getattr(params, name).dtype for name in known}
    for name, (low, high) in ranges.items():
        checks.choice("parameter", name, known)
        if not low < high:
            raise ValueError(f"{name}={(low, high)} must be a range (low, high) with low < high")
        if law == "log_uniform" and not low > 0 and jnp.issubdtype(dtypes[name], jnp.floating):
            raise ValueError(f"{name}={(low, high)} must be positive for law='log_uniform'")

    def draw(key: jax.Array, name: str, split: str) -> jax.Array:
        low, high = ranges[name]
        if jnp.issubdtype(dtypes[name], jnp.integer):
            drawn = _integer(key, int(low), int(high), split)
        else:
            drawn = _number(key, low, high, split, law=law, limits=_of_one_sign(low, high))
        return drawn.astype(dtypes[name])

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> Task:
            key, *keys = jax.random.split(key, len(ranges) + 1)
            drawn = {name: draw(k, name, split) for name, k in zip(ranges, keys, strict=True)}
            return _replaced(getattr(family, split)(key), drawn)

        return sample

    return dataclasses.replace(
        family,
        name=f"drawn_parameters_{family.name}",
        **_for_each_split(sampler),
        optimal_action=None,
        optimal_return=None,
        expert_action=family.expert_action or family.optimal_action,
    )


# Actions


@dataclasses.dataclass(frozen=True)
class RemappedActions(Transformed):
    """Actions are buttons; ``drawn[button]``, int32 ``[num_buttons]``, is what the button does."""

    num_buttons: int

    @property
    def nothing(self) -> jax.Array:
        return jnp.arange(self.num_buttons, dtype=jnp.int32) % self.env.action_space().n

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn[action]

    def action_space(self, params: Task | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_buttons)


def permuted_actions(family: TaskFamily) -> TaskFamily:
    """The family with its discrete actions permuted: which button does what must be found out.

    With three actions or more the splits have no permutation in common. Out of distribution the last
    button does action 0, in training and testing never; training draws the even permutations, testing the odd
    ones, all as likely. So 3 actions make 2, 2 and 2 tasks, 4 make 9, 9 and 6, and 6 make 300, 300 and
    120. Two actions have two permutations, which every split draws.
    """
    return _remapped(family, _num_actions(family), "permuted_actions")


def remapped_actions(family: TaskFamily, *, num_buttons: int) -> TaskFamily:
    """The family with more buttons than actions: each button does one action, each action has a button.

    The splits have no mapping in common, as in `permuted_actions`: what is even or odd is the order in
    which the actions come up first.

    Args:
        family: A family with discrete actions.
        num_buttons: At least as many as there are actions.
    """
    checks.at_least("num_buttons", num_buttons, _num_actions(family))
    return _remapped(family, num_buttons, "remapped_actions")


def _remapped(family: TaskFamily, num_buttons: int, prefix: str) -> TaskFamily:
    num_actions = _num_actions(family)

    def button(drawn: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.argmax(drawn == action).astype(jnp.int32)

    return _transformed(
        family,
        RemappedActions(family.env, num_buttons),
        lambda key, inner, split: _assignment(key, num_actions, num_buttons, split),
        prefix=prefix,
        optimal_action=_carried(family.optimal_action, act=button),
        optimal_return=_inner_return(family),
        expert_action=_carried(family.expert_action, act=button),
    )


@dataclasses.dataclass(frozen=True)
class FlippedActions(Transformed):
    """Continuous actions are mirrored at the middle of their range where ``drawn``, ±1, is negative."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(self.action_space().shape)

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        middle, _ = _middle_and_width(self.action_space())
        return middle + params.drawn * (action - middle)


def flipped_actions(family: TaskFamily) -> TaskFamily:
    """The family with the sign of each continuous action drawn, about the middle of its range.

    With three dimensions or more the splits have no signs in common: out of distribution the last is
    flipped, in training and testing never; of the others training flips an even number, testing an odd one.
    With fewer all splits draw from all signs.
    """
    shape = _box(family.action_space, family, "actions").shape
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

    return _transformed(
        family,
        env,
        draw,
        prefix="flipped_actions",
        optimal_action=_carried(family.optimal_action, act=flip),
        optimal_return=_inner_return(family),
        expert_action=_carried(family.expert_action, act=flip),
    )


@dataclasses.dataclass(frozen=True)
class RotatedActions(Transformed):
    """Each pair of action dimensions is turned by its ``drawn`` angle, in radians, ``[A // 2]``.

    Dimensions are measured in half the widths of their ranges, about the middle; what leaves the range
    is clipped to it.
    """

    @property
    def nothing(self) -> jax.Array:
        return jnp.zeros(self.action_space().shape[0] // 2)

    def act(self, action: jax.Array, params: TransformedParams) -> jax.Array:
        middle, width = _middle_and_width(self.action_space())
        return middle + width * _turned((action - middle) / width, params.drawn)


def rotated_actions(family: TaskFamily, *, max_angle: float = math.pi / 2) -> TaskFamily:
    """The family with its continuous actions rotated, pair of dimensions by pair, by drawn angles.

    Angles are uniform in ``[-max_angle, max_angle]``; out of distribution all lie outside, by up to
    half of ``max_angle``. Rotations cannot reach the corners of a range, so optima are lost.

    Args:
        family: A family with at least two continuous actions ``[A]``.
        max_angle: In radians, at most 2 π / 3, so that out of distribution there are other rotations.
    """
    checks.between("max_angle", max_angle, 0.0, 2 * math.pi / 3)
    shape = _box(family.action_space, family, "actions").shape
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"family={family.name!r} has actions of shape {shape}, not [A], A >= 2")

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        keys = jax.random.split(key, shape[0] // 2)
        draw_one = functools.partial(_number, low=-max_angle, high=max_angle, split=split)
        return jax.vmap(draw_one)(keys)

    middle, width = _middle_and_width(family.action_space)

    def back(drawn: jax.Array, action: jax.Array) -> jax.Array:
        return middle + width * _turned((action - middle) / width, -drawn)

    return _transformed(
        family,
        RotatedActions(family.env),
        draw,
        prefix="rotated_actions",
        expert_action=_carried(family.expert_action or family.optimal_action, act=back),
    )


@struct.dataclass
class StickyState:
    """The state within, and the action that was taken last."""

    inner: Any
    action: jax.Array
    first: jax.Array  # [], bool: there is none yet


@dataclasses.dataclass(frozen=True)
class StickyActions(Transformed):
    """With the ``drawn`` probability the last action is taken again, whatever is asked for."""

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


def sticky_actions(
    family: TaskFamily, *, low: float = 0.0, high: float = 0.25, outside: float = 0.4
) -> TaskFamily:
    """The family with sticky actions: with a drawn probability the last action is repeated.

    Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5. The first action of an
    episode is always taken. Controllers become experts: they do not know what is being repeated.

    Args:
        family: Any family.
        low: The least probability in training and testing.
        high: The largest.
        outside: The largest out of distribution, where none is below ``high``.
    """
    checks.between("high", high, 0.0, 1.0)
    checks.between("low", low, 0.0, high)
    checks.between("outside", outside, high, 1.0)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        ends = (high, outside) if split == "out_of_distribution" else (low, high)
        return jax.random.uniform(key, minval=ends[0], maxval=ends[1])

    return _transformed(
        family,
        StickyActions(family.env),
        draw,
        prefix="sticky_actions",
        expert_action=_carried(family.expert_action or family.optimal_action),
    )


# Observations


@dataclasses.dataclass(frozen=True)
class PermutedObservations(Transformed):
    """Element i of an observation is element ``drawn[i]``, int32, of that within.

    Attributes:
        axis: The axis along which the elements lie; None for all of them, however they are arranged.
    """

    axis: int | None = None

    @property
    def nothing(self) -> jax.Array:
        return jnp.arange(_num_elements(self.env, self.axis), dtype=jnp.int32)

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return _permuted(obs, params.drawn, self.axis)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        space = super().observation_space()
        if isinstance(space, spaces.Discrete):
            return space
        return spaces.Box(jnp.min(space.low), jnp.max(space.high), space.shape, space.dtype)


def permuted_observations(family: TaskFamily, *, axis: int | None = None) -> TaskFamily:
    """The family with the elements of its observations permuted, or the slices along an axis.

    Of observations that are the number of a state the states are permuted. Splits are those of
    `permuted_actions`: with three elements or more they have no permutation in common.

    Args:
        family: Any family.
        axis: The axis to permute; None permutes all elements, however they are arranged.
    """
    size = _num_elements(family.env, axis)

    def sorted_out(drawn: jax.Array, obs: jax.Array) -> jax.Array:
        return _permuted(obs, jnp.argsort(drawn), axis)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return _assignment(key, size, size, split)

    return _transformed(
        family,
        PermutedObservations(family.env, axis),
        draw,
        prefix="permuted_observations",
        optimal_action=_carried(family.optimal_action, see=sorted_out),
        optimal_return=_inner_return(family),
        expert_action=_carried(family.expert_action, see=sorted_out),
    )


@dataclasses.dataclass(frozen=True)
class MaskedObservations(Transformed):
    """Elements of an observation are 0 where ``drawn``, bool of an observation's shape, is False."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(self.observation_space().shape, bool)

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return jnp.where(params.drawn, obs, jnp.zeros((), obs.dtype))

    def observation_space(self, params: Task | None = None) -> spaces.Box:
        space = super().observation_space()
        low, high = jnp.minimum(space.low, 0), jnp.maximum(space.high, 0)
        return spaces.Box(low, high, space.shape, space.dtype)


def masked_observations(family: TaskFamily, *, num_hidden: int) -> TaskFamily:
    """The family with some elements of its observations hidden, for good, behind zeros.

    Train and test hide different sets of elements, all of them ``num_hidden`` large: those whose indices
    add up to an even number, and to an odd one. Out of distribution twice as many are hidden. Controllers are lost.

    Args:
        family: A family with observations in a `Box`.
        num_hidden: Elements to hide, at least 1 and at most half of them.
    """
    shape = _box(_observations(family.env), family, "observations").shape
    size = math.prod(shape)
    checks.at_least("num_hidden", num_hidden, 1)
    if 2 * num_hidden > size:
        raise ValueError(f"num_hidden={num_hidden} must be at most half of {size}, the elements")

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        if split == "out_of_distribution":
            return (jax.random.permutation(key, size) >= 2 * num_hidden).reshape(shape)

        def another(drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key, use_key = jax.random.split(drawn[0])
            return key, jax.random.permutation(use_key, size) < num_hidden

        def of_the_other(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jnp.sum(jnp.arange(size) * drawn[1]) % 2 == (split == "train")

        hidden = jax.lax.while_loop(of_the_other, another, another((key, jnp.zeros(size, bool))))[1]
        return ~hidden.reshape(shape)

    return _transformed(family, MaskedObservations(family.env), draw, prefix="masked_observations")


@dataclasses.dataclass(frozen=True)
class ProjectedObservations(Transformed):
    """Observations are ``drawn [size, O] @ obs``, the observation within flattened to ``[O]``.

    Attributes:
        size: Of an observation.
    """

    size: int

    @property
    def nothing(self) -> jax.Array:
        return jnp.eye(self.size, math.prod(_observations(self.env).shape))

    def see(self, obs: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn @ jnp.ravel(obs).astype(params.drawn.dtype)

    def observation_space(self, params: Task | None = None) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (self.size,), jnp.float32)


def projected_observations(family: TaskFamily, *, size: int) -> TaskFamily:
    """The family seen through a random matrix ``[size, O]`` with orthonormal rows or columns.

    The first entry of the matrix is positive in training and testing and negative out of distribution.
    Where ``size`` is at least O nothing is lost and controllers are carried along.

    Args:
        family: A family with observations in a `Box`.
        size: Of a projected observation.
    """
    checks.at_least("size", size, 1)
    shape = _box(_observations(family.env), family, "observations").shape
    within = math.prod(shape)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        matrix = jax.nn.initializers.orthogonal()(key, (size, within), float)
        wrong = (matrix[0, 0] < 0) != (split == "out_of_distribution")
        return jnp.where(wrong, -matrix, matrix)

    def back(drawn: jax.Array, obs: jax.Array) -> jax.Array:
        return (drawn.T @ obs).reshape(shape)

    whole = size >= within
    return _transformed(
        family,
        ProjectedObservations(family.env, size),
        draw,
        prefix="projected_observations",
        optimal_action=_carried(family.optimal_action, see=back) if whole else None,
        optimal_return=_inner_return(family) if whole else None,
        expert_action=_carried(family.expert_action, see=back) if whole else None,
    )


# Rewards


@dataclasses.dataclass(frozen=True)
class ScaledRewards(Transformed):
    """Rewards are multiplied by ``drawn``."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(())

    def earn(self, reward: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn * reward


def scaled_rewards(family: TaskFamily, *, scale: float = 10.0) -> TaskFamily:
    """The family with its rewards multiplied by a factor, log-uniform in ``[1 / scale, scale]``.

    Out of distribution the factor is outside, on either side, by up to a factor of sqrt(scale).
    """
    if not scale > 1:
        raise ValueError(f"scale={scale} must be above 1")
    optimal_return = family.optimal_return

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return factor(key, scale, split)

    return _transformed(
        family,
        ScaledRewards(family.env),
        draw,
        prefix="scaled_rewards",
        optimal_action=_carried(family.optimal_action),
        optimal_return=optimal_return and (lambda task: task.drawn * optimal_return(task.inner)),
        expert_action=_carried(family.expert_action),
    )


def signed_rewards(family: TaskFamily) -> TaskFamily:
    """The family with rewards that are, or are not, penalties: multiplied by 1 or -1, each as likely.

    There are only these two signs, which every split draws. Controllers are lost: they seek what may
    have to be avoided.
    """

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return jax.random.rademacher(key, (), float)

    return _transformed(family, ScaledRewards(family.env), draw, prefix="signed_rewards")


@struct.dataclass
class DelayedState:
    """The state within, and what is to be paid in how many steps."""

    inner: Any
    owed: jax.Array  # [longest delay + 1]


@dataclasses.dataclass(frozen=True)
class DelayedRewards(Transformed):
    """Each reward is paid ``drawn`` steps later, int32; what is owed at an episode's end is paid then.

    So a return is what it is within.

    Attributes:
        longest: The longest delay that there can be, in steps.
    """

    longest: int

    @property
    def nothing(self) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def reset_env(
        self, key: jax.Array, params: TransformedParams
    ) -> tuple[jax.Array, DelayedState]:
        obs, inner = self.env.reset_env(key, params.inner)
        return obs, DelayedState(inner, jnp.zeros(self.longest + 1))

    def step_env(
        self, key: jax.Array, state: DelayedState, action: jax.Array, params: TransformedParams
    ) -> tuple[jax.Array, DelayedState, jax.Array, jax.Array, dict]:
        obs, inner, reward, terminated, info = self.env.step_env(
            key, state.inner, action, params.inner
        )
        owed = state.owed.at[params.drawn].add(reward)
        last = jnp.logical_or(terminated, self.env.is_truncated(inner, params.inner))
        paid = jnp.where(last, jnp.sum(owed), owed[0])
        owed = jnp.append(owed[1:], jnp.zeros((), owed.dtype))
        return obs, DelayedState(inner, owed), paid, terminated, info

    def state_within(self, state: DelayedState) -> Any:
        return state.inner


def delayed_rewards(family: TaskFamily, *, max_delay: int = 10) -> TaskFamily:
    """The family with its rewards paid some steps late, and what is still owed at an episode's end.

    The delay is uniform over 0 to ``max_delay`` steps, out of distribution over those above, up to twice
    as long. Returns, and so optima, stay what they are.
    """
    checks.at_least("max_delay", max_delay, 1)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        first = max_delay + 1 if split == "out_of_distribution" else 0
        last = 2 * max_delay if split == "out_of_distribution" else max_delay
        return jax.random.randint(key, (), first, last + 1, jnp.int32)

    return _transformed(
        family,
        DelayedRewards(family.env, longest=2 * max_delay),
        draw,
        prefix="delayed_rewards",
        optimal_action=_carried(family.optimal_action),
        optimal_return=_inner_return(family),
        expert_action=_carried(family.expert_action),
    )


# The state's share in the task


@dataclasses.dataclass(frozen=True)
class Pinned(Transformed):
    """Leaves of the state have the values ``drawn``, a dict of them, from each reset on.

    Attributes:
        leaves: Names of the leaves.
    """

    leaves: tuple[str, ...]

    @property
    def nothing(self) -> dict[str, jax.Array]:
        return self.drawn_within(jax.random.key(0), self.env.default_params)

    def drawn_within(self, key: jax.Array, params: Task) -> dict[str, jax.Array]:
        """What a reset of the environment within would draw for the leaves."""
        state = _innermost(self.env.reset_env(key, params)[1])
        return {name: jnp.asarray(getattr(state, name)) for name in self.leaves}

    def reset_env(self, key: jax.Array, params: TransformedParams) -> tuple[jax.Array, Any]:
        reset_key, observe_key = jax.random.split(key)
        _, state = self.env.reset_env(reset_key, params.inner)
        state = _replaced(state, params.drawn)
        return self.env.observe(observe_key, state, None, params.inner), state


def pinned(
    family: TaskFamily,
    *leaves: str,
    inside: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
    outside: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
) -> TaskFamily:
    """The family with leaves of the environment's state made part of the task.

    Some environments draw what a meta-learner is to find out, a goal or a bandit's arms, in each reset: what
    was learned in one episode is wrong in the next. Pinned it is drawn once, with the task, and survives
    every reset. `IDENTITY` lists these leaves of gymnax's environments.

    Args:
        family: Of a gymnax environment, transformed or not.
        leaves: Names of fields of its state.
        inside: ``key -> {leaf: value}`` for train and test; None draws as the environment's reset does.
        outside: The same for out of distribution; None draws as ``inside`` does.

    Raises:
        ValueError: no leaf is named, or one that the state lacks.
    """
    if not leaves:
        raise ValueError("leaves=() must name at least one field of the environment's state")
    env = Pinned(family.env, leaves)
    state = jax.eval_shape(
        lambda: _innermost(family.env.reset_env(jax.random.key(0), family.env.default_params)[1])
    )
    for name in leaves:
        checks.choice("leaf", name, [field.name for field in dataclasses.fields(state)])

    def draw(key: jax.Array, inner: Task, split: str) -> dict[str, jax.Array]:
        chosen = outside or inside if split == "out_of_distribution" else inside
        return env.drawn_within(key, inner) if chosen is None else chosen(key)

    return _transformed(
        family,
        env,
        draw,
        prefix="pinned",
        expert_action=_carried(family.expert_action or family.optimal_action),
    )


# What the transformations share


def factor(key: jax.Array, scale: float, split: str) -> jax.Array:
    """A factor, ``[]``: log-uniform in ``[1 / scale, scale]``, or up to sqrt(scale) outside of that."""
    return _number(key, 1 / scale, scale, split, law="log_uniform")


def _strong(x: Any) -> jax.Array:
    """The same value as an array without a weak type."""
    return jnp.asarray(x, jnp.asarray(x).dtype)


def _is_number(x: Any) -> bool:
    return x.shape == () and x.dtype != bool


def _innermost(x: Any) -> Any:
    """The parameters, or the state, of the environment at the bottom of all transformations."""
    while hasattr(x, "inner"):
        x = x.inner
    return x


def _replaced(x: Any, fields: dict[str, Any]) -> Any:
    """The same with fields of the `_innermost` replaced."""
    if hasattr(x, "inner"):
        return x.replace(inner=_replaced(x.inner, fields))
    return x.replace(**fields)


def _num_actions(family: TaskFamily) -> int:
    space = family.action_space
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"family={family.name!r} has continuous actions, where discrete are needed"
        )
    return space.n


def _box(space: spaces.Space, family: TaskFamily, what: str) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"family={family.name!r} has {what} in {space}, where a Box is needed")
    return space


def _observations(env: Any) -> spaces.Space:
    return env.observation_space(env.default_params)


def _num_elements(env: Any, axis: int | None) -> int:
    space = _observations(env)
    if axis is None:
        return space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    if not 0 <= axis < len(space.shape):
        raise ValueError(f"axis={axis} must be one of the {len(space.shape)} of {space}, or None")
    return space.shape[axis]


def _permuted(obs: jax.Array, order: jax.Array, axis: int | None) -> jax.Array:
    if obs.ndim == 0:  # the number of a state
        return order[obs.astype(order.dtype)].astype(obs.dtype)
    return jnp.take(obs, order, axis=axis).reshape(obs.shape)


def _middle_and_width(space: spaces.Box) -> tuple[jax.Array, jax.Array]:
    """The middle of a Box, and half of its width."""
    low, high = (jnp.broadcast_to(jnp.asarray(x), space.shape) for x in (space.low, space.high))
    return (low + high) / 2, (high - low) / 2


def _turned(x: jax.Array, angles: jax.Array) -> jax.Array:
    """``x [A]`` with each pair turned by its angle ``[A // 2]``, clipped to [-1, 1]."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = x[: 2 * angles.size].reshape(-1, 2)
    turned = jnp.stack(
        [cos * pairs[:, 0] - sin * pairs[:, 1], sin * pairs[:, 0] + cos * pairs[:, 1]], axis=1
    )
    return jnp.clip(x.at[: 2 * angles.size].set(turned.reshape(-1)), -1.0, 1.0)


def _of_one_sign(low: float, high: float) -> tuple[float, float]:
    """The numbers that a range may grow into: those of its sign."""
    return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)


def _number(
    key: jax.Array,
    low: float,
    high: float,
    split: str,
    *,
    law: str = "uniform",
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> jax.Array:
    """A number in the range, or outside of it by up to a quarter of its width, within the limits."""
    measure, back = (math.log, jnp.exp) if law == "log_uniform" else (float, jnp.asarray)
    start, end = measure(low), measure(high)
    if split != "out_of_distribution":
        return back(jax.random.uniform(key, minval=start, maxval=end))
    margin = (end - start) / 4
    if law == "uniform":
        least, most = max(start - margin, limits[0]), min(end + margin, limits[1])
    else:
        least, most = start - margin, end + margin
    below, above = start - least, most - end
    drawn = jax.random.uniform(key, maxval=below + above)
    return back(jnp.where(drawn < below, least + drawn, end + drawn - below))


def _integer(key: jax.Array, low: int, high: int, split: str) -> jax.Array:
    """An integer of the range, ends included, or outside of it by up to a quarter of its width."""
    candidates = np.arange(low, high + 1)
    if split == "out_of_distribution":
        margin = math.ceil((high - low) / 4)
        around = np.arange(low - margin, high + margin + 1)
        around = around[(around < low) | (around > high)]
        candidates = around[around > 0] if low > 0 else around[around < 0] if high < 0 else around
    return jax.random.choice(key, jnp.asarray(candidates))


def _assignment(key: jax.Array, num_values: int, num_places: int, split: str) -> jax.Array:
    """Values for places, each at least once, int32 ``[num_places]``, uniform over those of the split.

    Out of distribution the last place has value 0, else another one; in training the order in which
    the values come first is an even permutation of them, in testing an odd one. Below three values all
    splits are the same.
    """
    shuffle_key, extra_key, last_key = jax.random.split(key, 3)
    extra = jax.random.randint(extra_key, (num_places - num_values,), 0, num_values, jnp.int32)
    values = jnp.append(jnp.arange(num_values, dtype=jnp.int32), extra)
    drawn = jax.random.permutation(shuffle_key, values)
    if num_values < 3:
        return drawn
    # Renaming values maps assignments one to one, so what was uniform stays so.
    if split == "out_of_distribution":
        return _exchanged(drawn, drawn[-1], 0)
    drawn = _exchanged(drawn, drawn[-1], jax.random.randint(last_key, (), 1, num_values))
    first = jnp.argmax(drawn[None, :] == jnp.arange(num_values)[:, None], axis=1)
    inversions = jnp.sum(jnp.triu(first[:, None] > first[None, :]))
    odd = inversions % 2 == 1
    return jnp.where(odd == (split == "test"), drawn, _exchanged(drawn, 1, 2))


def _exchanged(x: jax.Array, a: jax.Array | int, b: jax.Array | int) -> jax.Array:
    """``x`` with the values a and b in each other's places."""
    return jnp.where(x == a, b, jnp.where(x == b, a, x)).astype(x.dtype)
