r"""An actor-critic for finite MDPs that remembers counts, and plans on the graph that they describe.

In an MDP of S states and A actions all that a stream can teach is how often each action was taken in each
state, where it led and what it earned: a Bayesian's posterior is a function of these sums (Duff 2002,
"Optimal learning: computational procedures for Bayes-adaptive Markov decision processes"). They are the
memory, and nothing in it is learned. What is learned is what to make of them. Messages pass along the
estimated transitions as values do in value iteration (Tamar et al. 2016, "Value iteration networks"), by a
rule that is the same for every state, every action and every round:

$$u_s = W_u [\max_a h_{sa}, \mathrm{mean}_a h_{sa}],$$

$$h_{sa} ← \mathrm{relu}(W_x x_{sa} + W_h h_{sa} + \sum_{s'} P(s' | s, a) u_{s'}),$$

where x are a pair's mean reward and how often it was tried, whether s is the present state, and the time;
P are posterior means of transitions, by a Dirichlet prior whose weight is learned. The policy at s is a softmax of w·h_sa over a. Renaming states and
actions renames the policy and leaves the value as it is, so that what was learned at one pair need not be
learned again at the others, as a network that is shown one-hot states has to.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params

NUM_FEATURES = 6


class Counts(NamedTuple):
    """What a stream has seen."""

    moves: jax.Array  # [S, A, S], transitions; not an episode's last, whose successor is not shown
    visits: jax.Array  # [S, A]
    reward: jax.Array  # [S, A], sums
    obs: jax.Array  # [S], the last observation: the state that the next action is of
    time: jax.Array  # [], steps since the episode began


@checks.arguments
def graph_actor_critic(family: TaskFamily, *, size: int = 16, num_rounds: int = 4) -> ActorCritic:
    """The network, for the learners of `recurrent`: RL²'s ``Config(memory="counts")``.

    Args:
        family: Tasks with observations that are one-hot states, ``[S]``, and A discrete actions.
        size: Features of a pair of state and action (C).
        num_rounds: Rounds of messages: how many steps it can plan ahead.

    Raises:
        ValueError: the family's observations are no vector or its actions not discrete.
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
    (S,), A = family.observation_shape, family.action_space.n
    value = value_mlp((2 * size,), (2 * size,))
    glorot = jax.nn.initializers.glorot_normal(dtype=jnp.result_type(float))

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "prior": jnp.zeros(()),
            "features": glorot(keys[0], (NUM_FEATURES, size)),
            "bias": jnp.zeros(size),
            "self": glorot(keys[1], (size, size)),
            "successor": glorot(keys[2], (2 * size, size)),
            "policy": jnp.zeros(size),
            "value": value.init(keys[3]),
        }

    def initial() -> Counts:
        pairs = jnp.zeros((S, A))
        return Counts(jnp.zeros((S, A, S)), pairs, pairs, jnp.zeros(S), jnp.zeros(()))

    def seen(counts: Counts, inputs: Inputs) -> Counts:
        """With the last transition among them."""
        counts = jax.tree.map(lambda x: jnp.where(inputs.reset, jnp.zeros_like(x), x), counts)
        first, _ = inputs.time
        action, reward = inputs.past[:-1], inputs.past[-1]
        pair = jnp.outer(counts.obs, action)  # zero where nothing was done yet
        return Counts(
            moves=counts.moves + (1 - first) * pair[:, :, None] * inputs.obs[None, None, :],
            visits=counts.visits + pair,
            reward=counts.reward + pair * reward,
            obs=inputs.obs,
            time=(1 - first) * (counts.time + 1),
        )

    def read(params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, jax.Array]:
        """The policy and the value ``[]`` at the state that ``inputs`` shows."""
        alpha = jnp.exp(params["prior"])
        transition = counts.moves + alpha
        transition /= jnp.sum(transition, axis=-1, keepdims=True)
        doubt = 1 / (counts.visits + 1)
        x = [
            counts.reward * doubt,
            doubt,
            jnp.sqrt(doubt),
            jnp.repeat(inputs.obs[:, None], A, axis=1),
            jnp.full((S, A), counts.time / family.horizon),
            jnp.full((S, A), inputs.time[1]),
        ]
        given = jnp.stack(x, axis=-1) @ params["features"] + params["bias"][None, None, :]

        def pooled(h: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.max(h, axis=-2), jnp.mean(h, axis=-2)], axis=-1)

        h = jax.nn.relu(given)
        for _ in range(num_rounds):
            ahead = transition.reshape(S * A, S) @ (pooled(h) @ params["successor"])
            h = jax.nn.relu(given + h @ params["self"] + ahead.reshape(S, A, size))
        here = jnp.einsum("s,sac->ac", inputs.obs, h)
        return Categorical(here @ params["policy"]), value.apply(params["value"], pooled(here))

    def step(params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, Counts]:
        counts = seen(counts, inputs)
        distribution, _ = read(params, counts, inputs)
        return distribution, counts

    def unroll(params: Params, counts: Counts, inputs: Inputs) -> tuple[Categorical, jax.Array]:
        def count(counts: Counts, inputs: Inputs) -> tuple[Counts, Counts]:
            counts = seen(counts, inputs)
            return counts, counts

        _, all_counts = jax.lax.scan(count, counts, inputs)
        return jax.vmap(read, in_axes=(None, 0, 0))(params, all_counts, inputs)

    return ActorCritic(init, initial, step, unroll)
