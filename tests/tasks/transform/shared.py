"""What the tests of transformations share."""

import functools
import itertools
import math

import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta.tasks import transform

ENVIRONMENTS = sorted(set(gymnax.registered_envs) - set(transform.UNSUPPORTED))


SWITCHES = {
    "DeepSea-bsuite": {"sample_action_map": True},
    "FourRooms-misc": {"resample_goal_pos": True},
}
"""Parameters with which an environment draws what is pinned."""


def discrete(family):
    return isinstance(family.action_space, spaces.Discrete)


def sized(family):
    """Whether an observation is an array and no number."""
    return family.observation_shape != ()


@functools.cache
def everything(name, horizon=6):
    """Every transformation that applies to the environment, one on the other."""
    family = transform.from_gymnax(name, horizon=horizon)
    if fields := transform.parameter_fields(family):
        default = family.train(None)
        ranges = {}
        for field in fields:
            value = getattr(default, field).item()
            ranges[field] = (value, value + 1) if isinstance(value, int) else (value, value + 0.1)
        family = transform.drawn_parameters(family, ranges, law="uniform")
    if name in transform.IDENTITY:
        if name in SWITCHES:
            family = transform.with_parameters(family, **SWITCHES[name])
        family = transform.pinned(family, *transform.IDENTITY[name])
    if discrete(family):
        family = transform.permuted_actions(family)
        family = transform.remapped_actions(family, num_buttons=family.action_space.n + 1)
    else:
        family = transform.flipped_actions(family)
        if family.action_space.shape[0] > 1:
            family = transform.rotated_actions(family)
    if math.prod(family.observation_shape) > 1 or not sized(family):
        family = transform.permuted_observations(family)
    if math.prod(family.observation_shape) > 2:
        family = transform.masked_observations(family, num_hidden=1)
        family = transform.projected_observations(family, size=5)
    family = transform.sticky_actions(family)
    family = transform.signed_rewards(transform.scaled_rewards(family))
    return transform.delayed_rewards(family, max_delay=2)


def episodes(key, task, env, actions):
    """Steps as a rollout takes them: ``(obs, reward, last) [T]``."""

    def step(state, inputs):
        key, action = inputs
        step_key, reset_key = jax.random.split(key)
        obs, next_state, reward, terminated, _ = env.step_env(step_key, state, action, task)
        last = jnp.logical_or(terminated, env.is_truncated(next_state, task))
        _, reset_state = env.reset_env(reset_key, task)
        next_state = jax.tree.map(
            lambda x, y, old: jnp.where(last, x, y).astype(old.dtype),
            reset_state,
            next_state,
            state,
        )
        return next_state, (jnp.asarray(obs, float), jnp.asarray(reward, float), last)

    _, state = env.reset_env(key, task)
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(actions))
    return jax.lax.scan(step, state, (keys, actions))[1]


def allowed(name):
    """gymnax's Swimmer broadcasts a vector against a matrix."""
    return jax.numpy_rank_promotion("allow" if name == "Swimmer-misc" else "raise")


def random_actions(family, seed, count):
    return jax.vmap(family.random_action)(jax.random.split(jax.random.key(seed), count))


def unstacked(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def all_of(values, num_places):
    return {x for x in itertools.product(range(values), repeat=num_places) if len(set(x)) == values}


KEY = jax.random.key(7)


@struct.dataclass
class OwnParams:
    """No time limit."""

    number: float = 2.0


class Own(environment.Environment):
    """Counts, and never ends."""

    @property
    def default_params(self):
        return OwnParams()

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        return jnp.full(1, state + 1.0), state + 1, params.number, jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def observe(self, key, state, action, params):
        return jnp.full(1, state)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0.0, jnp.inf, (1,))
