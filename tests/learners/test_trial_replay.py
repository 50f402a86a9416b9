"""What is kept of trials; `test_recurrent_q` and `test_recurrent_sac` hold what is learned from them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.algorithms import recurrent_sac
from jaxmeta.learners import recurrent, trial_replay
from jaxmeta.learners.buffers import item_buffer
from tests.algorithms import test_recurrent_q as discrete

pytest.importorskip("flashbax")
family = discrete.family  # episodes end before their time limit


def of_values(family):
    """The parts of recurrent Q, and its first meta."""
    module = discrete.module
    config = module.Config(num_episodes=2, **discrete.SETTINGS)
    network = module.network_of(family, config)
    first_meta = partial(module.first_meta, network=network, hyper=module.Hyper())
    return module._learner_of(family, config, network), first_meta, family


def of_soft_actor_critic(_):
    """The same of recurrent SAC, on continuous actions."""
    config = recurrent_sac.Config(num_episodes=2, memory_size=4)
    family = tasks.make("half_circle", horizon=3)
    network = recurrent_sac.network_of(family, config)
    first_meta = partial(recurrent_sac.first_meta, network=network)
    return recurrent_sac._learner_of(family, config, network), first_meta, family


@pytest.mark.parametrize("parts_of", [of_values, of_soft_actor_critic])
def test_an_old_trial_is_replayed_as_it_was_lived(x64, family, parts_of):
    """The batch that is drawn from the buffer is the one of the trial when it was new, in today's units."""
    parts, first_meta, family = parts_of(family)
    buffer = item_buffer(trial_replay.kept_trial(family, parts, first_meta), 4, 4)

    @jax.jit
    def both(key):
        meta = first_meta(jax.random.key(0))._replace(reward_scale=jnp.asarray(0.5))
        drawn = tasks.sample_tasks(jax.random.key(1), family, 1, split="train")
        data, counted = recurrent.counted_steps(parts.trials(key, meta, drawn), 2)
        now = meta._replace(reward_scale=jnp.asarray(2.0))
        make = partial(trial_replay.batch_of, now, parts=parts)
        items = trial_replay.kept(data, counted)
        _, replayed = trial_replay.remembered(buffer.init(), buffer, items, make)
        return make(data, counted), replayed(key)

    live, drawn = both(jax.random.key(3))
    if parts_of is of_values:
        assert np.sum(~np.asarray(live.counted)) > 0
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), live)
    chex.assert_trees_all_equal(drawn, repeated)


def test_a_kept_trial_holds_what_a_batch_is_made_of_and_nothing_else(family):
    parts, first_meta, _ = of_values(family)
    data, counted = trial_replay.kept_trial(family, parts, first_meta)
    steps = 2 * family.horizon
    assert {x.shape[0] for x in jax.tree.leaves(data)} == {steps}
    assert counted.shape == (steps,)
    unused = (data.log_prob, data.discount, data.last, data.next_obs, data.memory)
    assert unused == ((),) * 5


def test_without_a_buffer_nothing_is_remembered():
    assert trial_replay.remembered((), None, (None, None), None) == ((), None)


def test_what_else_is_kept_of_a_trial_is_drawn_with_it(family):
    """And a trial without a counted step is not kept."""
    parts, first_meta, _ = of_values(family)
    item = (
        *trial_replay.kept_trial(family, parts, first_meta),
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    zeros = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), item)
    items = (zeros[0], zeros[1].at[1].set(True), jnp.array([[5.0], [7.0]]))
    buffer = item_buffer(item, 4, 3)
    _, replayed = trial_replay.remembered(buffer.init(), buffer, items, lambda *parts: parts)
    data, counted, more = replayed(jax.random.key(0))
    assert more.tolist() == [[7.0]] * 3
    assert np.all(counted)
    assert data.memory.time.tolist() == [0, 0, 0]
