import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import evaluation, rollouts, tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.tasks import keys
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams, constant_learner, random_learner


def counter(learner, num_streams):
    return rollouts.Setup(learner, Counter(), num_streams, num_steps=6)


def lived(learner, *, num_updates=3, restart=False, meta=0.5, key=0, task=None):
    task, setup = task or CounterParams(), counter(learner, num_streams=4)

    def run(key, meta):
        begin_key, key = jax.random.split(key)
        agent, streams = rollouts.begin(begin_key, meta, task, setup=setup)
        return (
            agent,
            key,
            rollouts.adapt(
                key,
                meta,
                task,
                agent,
                streams,
                setup=setup,
                num_updates=num_updates,
                restart=restart,
            ),
        )

    return jax.jit(run)(jax.random.key(key), meta)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (dict(learner=None), TypeError, "learner is None 'None'; it must be types.Learner"),
        (dict(num_streams=0), ValueError, "num_streams=0 must be at least 1"),
        (dict(num_steps=1.5), TypeError, "num_steps=1.5 must be an integer of at least 1"),
        (dict(unroll=True), TypeError, "unroll=True must be an integer of at least 1"),
    ],
)
def test_a_wrong_setup_is_refused_by_name(wrong, error, message):
    right = dict(learner=constant_learner(), env=Counter(), num_streams=2, num_steps=3)
    with pytest.raises(error, match=message):
        rollouts.Setup(**right | wrong)


def test_setups_of_equal_parts_are_equal():
    learner, env = constant_learner(), Counter()
    setup = rollouts.Setup(learner, env, np.int64(2), jnp.asarray(3))
    assert setup == rollouts.Setup(learner, env, 2, 3, unroll=1)
    assert setup != rollouts.Setup(learner, env, 2, 3, unroll=3)


def test_who_acts_is_told_by_a_setup():
    with pytest.raises(TypeError, match=r"setup is types.Learner .*; it must be .*Setup"):
        rollouts.begin(jax.random.key(0), 0.5, CounterParams(), setup=constant_learner())


def test_as_many_streams_go_on_as_were_set_up():
    learner, key, task = constant_learner(), jax.random.key(0), CounterParams()
    agent, streams = rollouts.begin(key, 0.5, task, setup=counter(learner, num_streams=2))
    with pytest.raises(ValueError, match="streams holds 2 streams; it must hold num_streams=3"):
        rollouts.collect(key, 0.5, task, agent, streams, setup=counter(learner, num_streams=3))


def test_what_a_caller_does_not_use_is_not_stored():
    family = tasks.make("navigation")
    learner = evaluation.controller_learner(lambda key, task, obs: family.random_action(key))
    setup = rollouts.Setup(learner, family.env, num_streams=16, num_steps=100)

    def rewards(key, task):
        return rollouts.sample(key, (), task, (), setup=setup).reward

    task = family.train(jax.random.key(0))
    program = jax.jit(rewards).lower(jax.random.key(1), task).compile()
    observations = 16 * 100 * 2 * 4
    assert program.memory_analysis().temp_size_in_bytes < observations


def test_a_sample_is_what_new_streams_collect():
    setup, task, key = counter(random_learner(), 3), CounterParams(), jax.random.key(4)
    begin_key, act_key = jax.random.split(key)
    streams = rollouts.begin_streams(begin_key, 0.5, task, setup=setup)
    _, collected = rollouts.collect(act_key, 0.5, task, 0.0, streams, setup=setup)
    sampled = rollouts.sample(key, 0.5, task, 0.0, setup=setup)
    jax.tree.map(np.testing.assert_array_equal, sampled, collected)


def test_shapes_and_order_of_a_lifetime():
    _, _, (agent, streams, history) = lived(constant_learner())
    assert agent == 3
    assert history.agent.tolist() == [0, 1, 2]  # who acted, before its update
    assert history.trajectories.reward.shape == (3, 4, 6)
    assert history.trajectories.memory.shape == (3, 4)
    assert streams.memory.tolist() == [18] * 4


@pytest.mark.parametrize(("restart", "starts"), [(False, [0, 2, 0]), (True, [0, 0, 0])])
def test_streams_go_on_or_begin_anew(restart, starts):
    """Episodes of 4 steps in rounds of 6."""
    _, _, (_, streams, history) = lived(constant_learner(), restart=restart)
    first_obs = history.trajectories.timestep.obs[:, :, 0, 0]
    np.testing.assert_array_equal(first_obs, np.tile(np.array(starts)[:, None], (1, 4)))
    # A memory that outlives episodes does not outlive a restart.
    assert history.trajectories.memory[:, 0].tolist() == ([0, 0, 0] if restart else [0, 6, 12])
    assert streams.timestep.first.all() == restart


def test_a_replayed_lifetime_is_the_lifetime():
    """Same key, same experience: the same agents, birth and random updates included; and live ones."""
    setup = counter(random_learner(), num_streams=4)
    key, meta = jax.random.key(0), jnp.asarray(0.5)
    history = jax.jit(
        lambda: rollouts.lifetime(
            key, meta, CounterParams(), setup=setup, num_updates=3, restart=True
        )
    )()

    def again(meta):
        return rollouts.replay(key, meta, history.trajectories, learner=setup.learner)

    replayed = jax.jit(again)(meta)
    np.testing.assert_allclose(replayed.agent, history.agent, rtol=1e-6)
    assert replayed.agent.shape == (4,)
    assert replayed.trajectories is not None
    # φ_1 = θ·θ + c: its slope is 2θ, and that of φ_0 = θ is 1.
    slopes = jax.jacobian(lambda meta: again(meta).agent)(meta)
    np.testing.assert_allclose(slopes[:2], [1.0, 2 * meta], rtol=1e-6)


def test_a_replay_without_updates_is_the_newborn():
    setup = counter(random_learner(), num_streams=2)
    data = rollouts.lifetime(
        jax.random.key(0), 0.5, CounterParams(), setup=setup, num_updates=0
    ).trajectories
    replayed = rollouts.replay(jax.random.key(0), 0.25, data, learner=setup.learner)
    np.testing.assert_allclose(replayed.agent, [0.25])


def test_no_update_leaves_the_newborn():
    agent, _, (adapted, _, history) = lived(random_learner(), num_updates=0)
    assert jnp.array_equal(agent, adapted)
    assert history.trajectories.reward.shape == (0, 4, 6)


def test_tasks_do_not_leak_into_each_other():
    """A batch of tasks adapts as each of them alone."""
    family = tasks.make("navigation", horizon=5)
    algorithm = maml(family, Config(num_streams=3, hidden_sizes=(4,)))
    meta = algorithm.init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="train")
    keys = jax.random.split(jax.random.key(2), 3)
    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=3, num_steps=5)

    def final(key, task):
        history = rollouts.lifetime(key, meta, task, setup=setup, num_updates=2, restart=True)
        return jax.tree.map(lambda x: x[-1], history.agent)

    together = jax.jit(jax.vmap(final))(keys, drawn)
    for m in range(3):
        alone = jax.jit(final)(keys[m], jax.tree.map(lambda x, m=m: x[m], drawn))
        for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(x, y[m], rtol=2e-5, atol=1e-6)
    moved = jax.tree.leaves(together)[0]
    assert not jnp.allclose(moved[0], moved[1])


def test_lifetime_ends_with_what_adaptation_led_to():
    setup = counter(constant_learner(), num_streams=2)
    history = rollouts.lifetime(jax.random.key(0), 0.5, CounterParams(), setup=setup, num_updates=2)
    assert history.agent.tolist() == [0, 1, 2]
    assert history.trajectories.timestep.obs[:, 0, 0, 0].tolist() == [0, 2, 0]


def test_the_derivative_runs_through_the_updates_alone():
    """agent' = meta·agent + data from agent = meta, K times: d/dmeta of meta^{K+1}, data constant."""
    meta, task, setup = 0.5, CounterParams(), counter(random_learner(), num_streams=2)

    def adapted(meta):
        agent, streams = rollouts.begin(jax.random.key(0), meta, task, setup=setup)
        out, _, history = rollouts.adapt(
            jax.random.key(1), meta, task, agent, streams, setup=setup, num_updates=3
        )
        return out, history

    slope, history = jax.grad(adapted, has_aux=True)(meta)
    means = history.trajectories.reward.mean((1, 2))
    # out = meta·(meta·(meta·meta + c0) + c1) + c2; the key's share is in c too, found from the agents.
    c = [history.agent[k + 1] - meta * history.agent[k] for k in range(2)]
    assert c[0] > means[0]
    np.testing.assert_allclose(slope, 4 * meta**3 + 2 * meta * c[0] + c[1], rtol=1e-5)


def test_streams_and_rounds_draw_different_numbers():
    _, _, (_, _, history) = lived(random_learner(), num_updates=4)
    rewards = history.trajectories.reward.reshape(16, 6)
    assert len(np.unique(np.asarray(rewards), axis=0)) == 16


class KeyRecorder(Counter):
    """Observes the keys that it is given, as floats that hold 48 of their bits exactly."""

    def step_env(self, key, state, action, params):
        _, state, reward, terminated, info = super().step_env(key, state, action[0], params)
        return seen(key), state, reward, terminated, info

    def reset_env(self, key, params):
        return seen(key), super().reset_env(key, params)[1]

    def action_space(self, params=None):
        return spaces.Box(0.0, 1.0, (2,), jnp.float32)


def seen(key):
    return (jax.random.key_data(key) & 0xFFFFFF).astype(
        jnp.float32
    )  # counted keys differ at the end


def test_a_lifetime_uses_no_key_twice():
    """Every key that reaches the learner or the environment, over streams, steps, rounds and restarts."""
    learner = Learner(
        init=lambda key, meta: jnp.stack([seen(key)]),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, timestep: (seen(key), jnp.zeros(()), memory),
        update=lambda key, meta, agent, trajectories: agent * 0 + seen(key)[None, :],
    )
    setup = rollouts.Setup(learner, KeyRecorder(), num_streams=3, num_steps=6)
    history = rollouts.lifetime(
        jax.random.key(0), None, CounterParams(), setup=setup, num_updates=2, restart=True
    )
    data = history.trajectories
    used = [
        history.agent.reshape(-1, 2),  # the newborn's, then each update's
        data.action.reshape(-1, 2),
        data.next_obs.reshape(-1, 2),  # the steps'
        data.timestep.obs[data.timestep.first],  # the resets'
    ]
    used = np.concatenate([np.asarray(x) for x in used])
    assert len(used) == 3 + 2 * 3 * 3 * 6 + 3 * 3 * 2
    assert len(np.unique(used, axis=0)) == len(used)


def test_what_an_agent_keeps_of_a_quick_key_is_jax_s_own():
    """A learner whose agent is the last key that it was given: also where a meta-update has made its key quick."""
    learner = constant_learner()._replace(
        init=lambda key, meta: key, update=lambda key, meta, agent, trajectories: key
    )
    setup = counter(learner, num_streams=2)

    @jax.jit
    def agents(key):
        history = rollouts.lifetime(key, None, CounterParams(), setup=setup, num_updates=2)
        again = rollouts.replay(key, None, history.trajectories, learner=learner)
        return history.agent, again.agent

    plain, quick = agents(jax.random.key(1)), agents(keys.quick(jax.random.key(1)))
    assert len({tuple(x) for x in jax.random.key_data(plain[0]).tolist()}) == 3
    for kept in (*plain, *quick):
        assert kept.dtype == jax.random.key(0).dtype
        np.testing.assert_array_equal(*map(jax.random.key_data, (kept, plain[0])))
