r"""An actor-critic for finite MDPs that counts transitions and plans on the graph of the counts.

In an MDP of S states and A actions the posterior depends on a stream only through sums: how often
each action was taken in each state, where the action led and how much it earned (Duff 2002,
"Optimal learning: computational procedures for Bayes-adaptive Markov decision processes"). These
sums are the memory, and no part of the memory is learned. The network learns to read them. Messages
pass along the estimated transitions as values do in value iteration (Tamar et al. 2016, "Value
iteration networks"), by one rule for every state, every action and every round:

$$u_s = W_u [\max_a h_{sa}, \mathrm{mean}_a h_{sa}],$$

$$h_{sa} ← \mathrm{relu}(W_x x_{sa} + W_h h_{sa} + \sum_{s'} P(s' | s, a) u_{s'}),$$

where the features x of a pair are its mean reward, its number of visits, whether s is the present
state, and the time; P are posterior means of transitions, under a Dirichlet prior with a learned
weight. The policy at s is a softmax of w·h_sa over a. If states and actions are renamed, the policy
is renamed with them and the value stays the same. So the network learns for all pairs at once; a
network that reads one-hot states must learn each pair by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params

NUM_FEATURES = 6


class Counts(NamedTuple):
    """Sums over the transitions of one stream."""

    moves: jax.Array
    """``[S, A, S]``, transitions. The last transition of an episode is left out: its successor is
    not shown."""
    visits: jax.Array
    """``[S, A]``, how often each action was taken in each state."""
    reward: jax.Array
    """``[S, A]``, total rewards."""
    obs: jax.Array
    """``[S]``, the last observation, one-hot: the state of the next action."""
    time: jax.Array
    """``[]``, steps since the episode began."""


@checks.arguments
def graph_actor_critic(family: TaskFamily, *, size: int = 16, num_rounds: int = 4) -> ActorCritic:
    """An actor-critic of counts, for RL²: ``rl2(family, network=graph_actor_critic(family))``.

    Args:
        family: Tasks with observations that are one-hot states, ``[S]``, and A discrete actions.
        size: Features of a pair of state and action (C).
        num_rounds: Rounds of messages, the number of steps to plan ahead.

    Raises:
        ValueError: the family's observations are no vector, or its actions are not discrete.
    """
    checks.at_least("size", size, 1)
    checks.at_least("num_rounds", num_rounds, 0)
    if len(family.observation_shape) != 1:
        raise ValueError(
            f"graph_actor_critic needs one-hot states [S] as observations, not {family.observation_shape}"
        )
    if not isinstance(family.action_space, spaces.Discrete):
        raise ValueError(
            f"graph_actor_critic needs a discrete action space, not {family.action_space!r}"
        )
    network = _GraphNetwork(
        num_states=family.observation_shape[0],
        num_actions=family.action_space.n,
        horizon=family.horizon,
        size=size,
        num_rounds=num_rounds,
        value=value_mlp((2 * size,), (2 * size,)),
    )

    def step(params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, Counts]:
        counts = _counted(counts, inputs)
        distribution, _ = network.read(params, counts, inputs)
        return distribution, counts

    def unroll(params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, jax.Array]:
        def count(counts: Counts, inputs: Inputs) -> tuple[Counts, Counts]:
            counts = _counted(counts, inputs)
            return counts, counts

        _, all_counts = jax.lax.scan(count, counts, inputs)
        return jax.vmap(network.read, in_axes=(None, 0, 0))(params, all_counts, inputs)

    return ActorCritic(network.init, network.initial, step, unroll)


def _counted(counts: Counts, inputs: Inputs) -> Counts:
    """``counts [S, A, ...]`` with the transition that ends at ``inputs`` added."""
    counts = jax.tree.map(lambda x: jnp.where(inputs.reset, jnp.zeros_like(x), x), counts)
    first, _ = inputs.time
    action, reward = inputs.past[:-1], inputs.past[-1]
    pair = jnp.outer(counts.obs, action)  # zero before the first action
    return Counts(
        moves=counts.moves + (1 - first) * pair[:, :, None] * inputs.obs[None, None, :],
        visits=counts.visits + pair,
        reward=counts.reward + pair * reward,
        obs=inputs.obs,
        time=(1 - first) * (counts.time + 1),
    )


class _GraphNetwork(NamedTuple):
    """The sizes of a `graph_actor_critic`, and the functions that depend on them."""

    num_states: int
    num_actions: int
    horizon: int
    size: int
    num_rounds: int
    value: Value

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        # A truncated normal, unlike `dense.glorot`: another draw would give another network.
        glorot = jax.nn.initializers.glorot_normal(dtype=jnp.result_type(float))
        keys = jax.random.split(key, 4)
        return {
            "prior": jnp.zeros(()),
            "features": glorot(keys[0], (NUM_FEATURES, self.size)),
            "bias": jnp.zeros(self.size),
            "self": glorot(keys[1], (self.size, self.size)),
            "successor": glorot(keys[2], (2 * self.size, self.size)),
            "policy": jnp.zeros(self.size),
            "value": self.value.init(keys[3]),
        }

    def initial(self) -> Counts:
        """Counts of a stream that has seen nothing."""
        states = jnp.zeros(self.num_states)
        pairs = jnp.zeros((self.num_states, self.num_actions))
        moves = jnp.zeros((*pairs.shape, self.num_states))
        return Counts(moves, pairs, pairs, states, jnp.zeros(()))

    def read(self, params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, jax.Array]:
        """The policy and the value ``[]`` at the state that ``inputs`` shows."""
        pairs = self.num_states, self.num_actions
        alpha = jnp.exp(params["prior"])
        transition = counts.moves + alpha
        transition /= jnp.sum(transition, axis=-1, keepdims=True)
        x = self._features(counts, inputs)
        given = x @ params["features"] + params["bias"][None, None, :]
        h = jax.nn.relu(given)
        for _ in range(self.num_rounds):
            message = _pooled(h) @ params["successor"]
            ahead = transition.reshape(-1, self.num_states) @ message
            h = jax.nn.relu(given + h @ params["self"] + ahead.reshape(*pairs, self.size))
        here = jnp.einsum("s,sac->ac", inputs.obs, h)
        value = self.value.apply(params["value"], _pooled(here))
        return Categorical(here @ params["policy"]), value

    def _features(self, counts: Counts, inputs: Inputs) -> jax.Array:
        """The features x of every pair, ``[S, A, NUM_FEATURES]``."""
        pairs = self.num_states, self.num_actions
        doubt = 1 / (counts.visits + 1)
        x = [
            counts.reward * doubt,
            doubt,
            jnp.sqrt(doubt),
            jnp.repeat(inputs.obs[:, None], self.num_actions, axis=1),
            jnp.full(pairs, counts.time / self.horizon),
            jnp.full(pairs, inputs.time[1]),
        ]
        return jnp.stack(x, axis=-1)


def _pooled(h: jax.Array) -> jax.Array:
    """Maximum and mean over actions, ``[..., A, C] -> [..., 2 C]``."""
    return jnp.concatenate([jnp.max(h, axis=-2), jnp.mean(h, axis=-2)], axis=-1)
