import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import adaptation, tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams, constant_learner, random_learner

WORLD = dict(env=Counter(), num_steps=6)


def lived(learner, *, num_updates=3, restart=False, meta=0.5, key=0, task=None):
    task = task or CounterParams()

    def run(key, meta):
        begin_key, key = jax.random.split(key)
        agent, streams = adaptation.begin(
            begin_key, meta, task, learner=learner, env=WORLD["env"], num_streams=4
        )
        return (
            agent,
            key,
            adaptation.adapt(
                key,
                meta,
                task,
                agent,
                streams,
                learner=learner,
                num_updates=num_updates,
                restart=restart,
                **WORLD,
            ),
        )

    return jax.jit(run)(jax.random.key(key), meta)


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
    settings = dict(learner=random_learner(), num_streams=4, num_updates=3, restart=True, **WORLD)
    key, meta = jax.random.key(0), jnp.asarray(0.5)
    history = jax.jit(lambda: adaptation.lifetime(key, meta, CounterParams(), **settings))()

    def again(meta):
        return adaptation.replay(key, meta, history.trajectories, learner=random_learner())

    replayed = jax.jit(again)(meta)
    np.testing.assert_allclose(replayed.agent, history.agent, rtol=1e-6)
    assert replayed.agent.shape == (4,)
    assert replayed.trajectories is not None
    # φ_1 = θ·θ + c: its slope is 2θ, and that of φ_0 = θ is 1.
    slopes = jax.jacobian(lambda meta: again(meta).agent)(meta)
    np.testing.assert_allclose(slopes[:2], [1.0, 2 * meta], rtol=1e-6)


def test_a_replay_without_updates_is_the_newborn():
    data = adaptation.lifetime(
        jax.random.key(0),
        0.5,
        CounterParams(),
        learner=random_learner(),
        num_streams=2,
        num_updates=0,
        **WORLD,
    ).trajectories
    replayed = adaptation.replay(jax.random.key(0), 0.25, data, learner=random_learner())
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

    def final(key, task):
        history = adaptation.lifetime(
            key,
            meta,
            task,
            learner=algorithm.learner,
            env=family.env,
            num_streams=3,
            num_updates=2,
            num_steps=5,
            restart=True,
        )
        return jax.tree.map(lambda x: x[-1], history.agent)

    together = jax.jit(jax.vmap(final))(keys, drawn)
    for m in range(3):
        alone = jax.jit(final)(keys[m], jax.tree.map(lambda x, m=m: x[m], drawn))
        for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(x, y[m], rtol=2e-5, atol=1e-6)
    moved = jax.tree.leaves(together)[0]
    assert not jnp.allclose(moved[0], moved[1])


def test_lifetime_ends_with_what_adaptation_led_to():
    history = adaptation.lifetime(
        jax.random.key(0),
        0.5,
        CounterParams(),
        learner=constant_learner(),
        num_streams=2,
        num_updates=2,
        **WORLD,
    )
    assert history.agent.tolist() == [0, 1, 2]
    assert history.trajectories.timestep.obs[:, 0, 0, 0].tolist() == [0, 2, 0]


def test_the_derivative_runs_through_the_updates_alone():
    """agent' = meta·agent + data from agent = meta, K times: d/dmeta of meta^{K+1}, data constant."""
    meta = 0.5

    def adapted(meta):
        agent, streams = adaptation.begin(
            jax.random.key(0),
            meta,
            CounterParams(),
            learner=random_learner(),
            env=WORLD["env"],
            num_streams=2,
        )
        out, _, history = adaptation.adapt(
            jax.random.key(1),
            meta,
            CounterParams(),
            agent,
            streams,
            learner=random_learner(),
            num_updates=3,
            **WORLD,
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
    history = adaptation.lifetime(
        jax.random.key(0),
        None,
        CounterParams(),
        learner=learner,
        env=KeyRecorder(),
        num_streams=3,
        num_updates=2,
        num_steps=6,
        restart=True,
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
