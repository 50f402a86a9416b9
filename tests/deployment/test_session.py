"""A session does in one task what a lifetime does in training, and goes on after it was saved."""

import functools
from types import SimpleNamespace

import flax.serialization
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.deployment import Session
from jaxmeta.deployment.session import MAGIC
from jaxmeta.runs import experiments, training
from jaxmeta.types import Lifetime, MetaAlgorithm
from tests.probes import constant_learner


def trained(name, family, **settings):
    module = ALGORITHMS[name]
    algorithm = getattr(module, name)(family, module.Config(**settings))
    run = training.begin(jax.random.key(0), algorithm=algorithm)
    return experiments.Trained(None, algorithm, family, run)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "family", "settings"),
    [
        ("maml", tasks.make("cartpole", horizon=20), dict(num_streams=2)),
        ("rl2", tasks.make("gridnavi", horizon=5), dict(num_episodes=2)),
        slow("pearl", tasks.make("half_circle", horizon=4), dict(num_streams=1, num_episodes=2)),
        ("meta_actor_critic", tasks.make("pendulum", horizon=5), dict(num_streams=2)),
        slow("meta_gradient", tasks.make("catch"), dict(num_streams=1, num_steps=7)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.filterwarnings("ignore:the trial of")
def test_it_acts_and_learns_as_a_lifetime_with_the_same_key(name, family, settings):
    """Through two updates, in the observations and rewards that the lifetime had."""
    run = trained(name, family, **settings)
    lived = run.algorithm.lifetime
    setup = rollouts.Setup(run.learner, family.env, lived.num_streams, lived.num_steps)
    key, task = jax.random.key(2), family.test(jax.random.key(1))

    @jax.jit
    def lifetime(key):
        return rollouts.lifetime(
            key, run.meta, task, setup=setup, num_updates=3, restart=lived.restart
        )

    history = jax.device_get(lifetime(key))
    session, data = Session(run, seed=key), history.trajectories
    for k in range(3):
        # The agent after k updates is the lifetime's: what it draws later depends on all of it.
        for ours, theirs in zip(
            jax.tree.leaves(session._agent), jax.tree.leaves(history.agent), strict=True
        ):
            np.testing.assert_allclose(ours, theirs[k], rtol=1e-5, atol=1e-5)
        for n in range(lived.num_streams):
            for t in range(lived.num_steps):
                one = jax.tree.map(lambda x: x[k, n, t], data._replace(memory=()))  # noqa: B023
                session.act(one.timestep.obs)
                np.testing.assert_allclose(session._drawn[1], one.action, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(session._drawn[2], one.log_prob, rtol=1e-4, atol=1e-5)
                ended = one.discount == 0
                over = session.observe(one.reward, ended, one.last and not ended, one.next_obs)
                assert over == one.last
                if over and lived.restart:
                    break
        assert session.num_updates == k + 1


@pytest.fixture(scope="module")
def agent():
    return trained("maml", tasks.make("cartpole", horizon=8), num_streams=2, hidden_sizes=(4,))


def play(session, env, num_steps):
    actions = []
    observation, _ = env.reset(seed=0)
    for _ in range(num_steps):
        actions.append(session.act(observation))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        if session.observe(reward, terminated, truncated, observation):
            observation, _ = env.reset(seed=session.num_episodes)
    return actions


def test_it_plays_gymnasium_and_goes_on_after_it_was_saved(agent, tmp_path):
    whole, first = Session(agent, seed=3), Session(agent, seed=3)
    env = gymnasium.make("CartPole-v1")
    actions = play(whole, env, 40)
    assert set(actions) == {0, 1}
    assert all(type(x) is int for x in actions)
    assert whole.num_steps == 40
    assert whole.num_episodes >= 5  # of at most 8 steps: the horizon cuts them
    assert whole.num_updates == whole.num_episodes // 2
    np.testing.assert_allclose(whole.returns, 8.0, atol=3)
    head = play(first, env, whole.num_steps - 40 + 19)
    (tmp_path / "session.tmp").write_text("another's")
    first.save(tmp_path / "session")
    first.save(tmp_path / "session")  # its own file, it may write again
    assert (tmp_path / "session.tmp").read_text() == "another's"
    assert len(list(tmp_path.iterdir())) == 2
    second = Session(agent, seed=9)
    second.restore(tmp_path / "session")
    observation = np.array([0.01, 0.02, 0.03, 0.04])
    for _ in range(10):
        assert first.act(observation) == second.act(observation)
        ends = [x.observe(1.0, False, False, observation) for x in (first, second)]
        assert ends[0] == ends[1]
    assert first.returns == second.returns
    assert len(head) == 19


def test_bad_input_is_named(agent, tmp_path):
    session = Session(agent)
    obs = np.zeros(4)
    with pytest.raises(ValueError, match="observe was called before act"):
        session.observe(1.0, False, False, obs)
    with pytest.raises(ValueError, match=r"observation is of shape \(3,\)"):
        session.act(np.zeros(3))
    session.act(obs)
    with pytest.raises(ValueError, match="act was called twice"):
        session.act(obs)
    for wrong, message in (
        (dict(reward=None), "reward=None must be a number"),
        (dict(reward=obs), r"observe\(reward, terminated, truncated, observation\)"),
        (dict(terminated=0.5), "terminated"),
        (dict(observation=np.zeros((1, 4))), "observation"),
    ):
        told = dict(reward=1.0, terminated=False, truncated=False, observation=obs) | wrong
        with pytest.raises((ValueError, TypeError), match=message):
            session.observe(**told)
    with pytest.raises(ValueError, match="save was called after act"):
        session.save(tmp_path / "x")
    session.observe(1.0, np.bool_(False), False, obs)
    mine = tmp_path / "mine.txt"
    mine.write_text("a user's own")
    with pytest.raises(FileExistsError, match="is a file that is no session"):
        session.save(mine)
    with pytest.raises(ValueError, match="is no saved session"):
        session.restore(mine)
    assert mine.read_text() == "a user's own"
    session.save(tmp_path / "x")
    other = trained("maml", tasks.make("cartpole", horizon=8), num_streams=2, hidden_sizes=(5,))
    with pytest.raises(ValueError, match="of another run's agent"):
        Session(other).restore(tmp_path / "x")
    with pytest.raises(ValueError, match="is no saved session"):
        session.restore(tmp_path)
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        session.save(tmp_path / "no" / "such")
    with pytest.raises(TypeError, match=r"as jaxmeta.load\(folder\) returns it"):
        Session("runs/mine")
    with pytest.raises(TypeError, match="it is experiments.Trained") as error:
        Session(agent.run)
    assert len(str(error.value)) < 250
    with pytest.raises(TypeError, match="trained.algorithm is"):
        Session(agent._replace(algorithm=agent.family))
    with pytest.raises(ValueError, match="has no lifetime"):
        Session(agent._replace(algorithm=agent.algorithm._replace(lifetime=None)))
    many = jax.tree.map(lambda x: jnp.stack([x]), agent.run)
    with pytest.raises(ValueError, match="is a population"):
        Session(agent._replace(run=many))


def test_a_file_that_holds_no_session_is_named(agent, tmp_path):
    content = flax.serialization.msgpack_serialize([np.zeros(2)])
    (tmp_path / "session").write_bytes(MAGIC + content)
    with pytest.raises(ValueError, match="is damaged"):
        Session(agent).restore(tmp_path / "session")


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused_and_change_nothing(agent, broken):
    session, other = Session(agent), Session(agent)
    obs = np.array([0.01, 0.02, 0.03, 0.04])
    wrong = np.array([0.0, 0.0, broken, 0.0])
    message = r"observation\[2\] is .*; it must be a finite float32 number"
    with pytest.raises(ValueError, match=message):
        session.act(wrong)
    assert session.act(obs) == other.act(obs)
    with pytest.raises(ValueError, match="reward is .*; it must be a finite float32 number"):
        session.observe(broken, False, False, obs)
    with pytest.raises(ValueError, match=message):
        session.observe(1.0, False, False, wrong)
    for _ in range(20):
        for one in (session, other):
            one.observe(1.0, False, False, obs)
        assert session.act(obs) == other.act(obs)
    assert session.returns == other.returns


def test_a_trial_that_is_over_is_said_and_a_lifetime_says_what_it_was():
    run = trained("rl2", tasks.make("gridnavi", horizon=2), num_episodes=2, memory_size=4)
    assert run.algorithm.lifetime == Lifetime(1, 4, restart=False, trial=True)
    session = Session(run)
    obs = np.eye(25)[0]
    for _ in range(4):
        action = session.act(obs)
        assert type(action) is int
        session.observe(-0.1, False, False, obs)
    assert session.num_episodes == 2
    with pytest.warns(UserWarning, match="the trial of 4 steps is over"):
        session.act(obs)


def test_continuous_actions_are_within_their_bounds():
    run = trained("maml", tasks.make("navigation", horizon=3), num_streams=1)
    session = Session(run)
    for _ in range(6):
        action = session.act(np.zeros(2))
        assert action.shape == (2,)
        assert np.all(np.abs(action) <= 0.1)
        session.observe(0.0, False, False, np.zeros(2))
    assert session.num_updates == 2


def test_each_stream_is_learned_from_with_the_memory_that_it_began_with():
    """Streams that go on one after another: of three steps each, by a learner whose memory counts them."""
    learner = constant_learner()._replace(
        update=lambda key, meta, agent, trajectories: trajectories.memory
    )
    algorithm = MetaAlgorithm(lambda key: None, lambda *x: None, learner, Lifetime(2, 3))
    run = training.Run(jax.random.key(0), SimpleNamespace(meta=0.0), jnp.zeros((), jnp.int32))
    session = Session(experiments.Trained(None, algorithm, tasks.make("catch"), run))
    for _ in range(12):
        session.act(np.zeros((10, 5)))
        session.observe(0.0, False, False, np.zeros((10, 5)))
    assert session.num_updates == 2
    np.testing.assert_array_equal(session._agent, [6, 9])
