"""MuJoCo Playground's bodies as tasks: their drawn physics are MuJoCo's own, and last from episode to episode."""

import copy
import sys

import jax
import numpy as np
import pytest

from jaxmeta import evaluation, rollouts, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.runs import training
from jaxmeta.tasks import playground

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco_playground")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def loaded(name):
    return playground._suite().load(name, config_overrides={"impl": "jax"})


def by_mujoco(env, physics):
    """MuJoCo's own model with the factors ``physics``, by hand."""
    model = copy.deepcopy(env.mj_model)
    model.body_mass *= physics["mass"]
    model.body_inertia *= physics["mass"][:, None]
    model.geom_friction *= physics["friction"]
    model.actuator_gainprm *= physics["strength"][:, None]
    model.actuator_biasprm *= physics["strength"][:, None]
    model.opt.gravity *= physics["gravity"]
    return model


@pytest.mark.parametrize("name", ["CheetahRun", "FingerSpin"])
def test_drawn_physics_are_those_of_the_model(name):
    env = loaded(name)
    standard = env.mjx_model
    rng = np.random.default_rng(0)
    sizes = {"mass": standard.nbody, "strength": standard.nu, "friction": (), "gravity": ()}
    physics = {x: rng.uniform(0.5, 2.0, size) for x, size in sizes.items()}
    model, expected = playground._with_physics(env, physics).mjx_model, by_mujoco(env, physics)
    names = ["body_mass", "body_inertia", "geom_friction", "actuator_gainprm", "actuator_biasprm"]
    for x in names:
        np.testing.assert_allclose(getattr(model, x), getattr(expected, x), rtol=1e-6)
    np.testing.assert_allclose(model.opt.gravity, expected.opt.gravity, rtol=1e-6)
    mujoco.mj_setConst(expected, mujoco.MjData(expected))  # which sums masses over subtrees
    np.testing.assert_allclose(model.body_subtreemass, expected.body_subtreemass, rtol=1e-6)
    assert env.mjx_model is standard


def test_steps_are_mujoco_s_and_the_task_outlasts_episodes():
    """One held action from the start of two drawn tasks; MuJoCo's own simulation is the oracle."""
    family = playground.playground("FingerSpin", horizon=3)
    assert family.observation_shape == (9,)
    assert family.action_space.shape == (2,)
    assert playground.playground("FingerSpin", horizon=3) is family
    action = np.array([0.9, -0.7], np.float32)
    learner = evaluation.controller_learner(lambda key, *_: action)
    setup = rollouts.Setup(learner, family.env, num_streams=1, num_steps=7)

    def lived(key):
        task = family.train(key)
        history = rollouts.lifetime(key, task, task, setup=setup, num_updates=0)
        return task, jax.tree.map(lambda x: x[0, 0], history.trajectories)

    drawn, data = jax.jit(jax.vmap(lived))(jax.random.split(jax.random.key(0)))
    env = loaded("FingerSpin")
    with jax.numpy_rank_promotion("allow"):
        structure = jax.tree.structure(jax.eval_shape(env.reset, jax.random.PRNGKey(0)))
    for m in range(2):
        task = jax.tree.map(lambda x, m=m: np.asarray(x[m]), drawn)
        np.testing.assert_array_equal(data.last[m], [False, False, True] * 2 + [False])
        for start in (0, 3, 6):
            np.testing.assert_array_equal(data.timestep.obs[m, start], task["obs"])
        model = by_mujoco(env, task["physics"])
        simulated = mujoco.MjData(model)
        simulated.qpos[:] = jax.tree.unflatten(structure, task["start"]).data.qpos
        for t in range(3):
            simulated.ctrl[:] = action
            mujoco.mj_step(model, simulated, env.n_substeps)
            np.testing.assert_allclose(
                data.next_obs[m, t, 4:7], simulated.qvel, rtol=5e-3, atol=5e-3
            )
            assert data.reward[m, t] == float(simulated.qvel[2] <= -15)
        assert np.abs(simulated.qvel).max() > 0.5
    for factors in drawn["physics"].values():
        assert np.all((factors > 1 / 1.5) & (factors < 1.5) & (factors[:1] != factors[1:]).any())


def test_out_of_distribution_every_factor_lies_outside():
    family = playground.playground("FingerSpin", horizon=3, scale=2.0)
    draw = jax.jit(lambda key: family.out_of_distribution(key)["physics"])
    physics = draw(jax.random.key(1))
    for factors in physics.values():
        size = np.abs(np.log2(factors))
        assert np.all((size > 1) & (size < 1.5))


@pytest.mark.slow
def test_a_body_keeps_its_promises():
    """Playground's own code uses a random key twice, which `check` says. Nothing else is found."""
    family = playground.playground("FingerSpin", horizon=20)
    problems = tasks.check(family, num_tasks=2).problems
    assert [x for x in problems if "key is used twice" not in x] == []


@pytest.mark.slow
def test_rl2_learns_to_run(in_earnest):
    """Two episodes of half a second earn 0.6 at the beginning, as random actions do, and more than 8 in the end."""
    family = playground.playground("CheetahRun", horizon=50)
    config = Config(num_episodes=2, num_minibatches=2, num_epochs=2)
    algorithm = rl2(family, config, Hyper(learning_rate=2e-3))
    log = []
    plan = training.Config(meta_updates=40, num_tasks=32)
    training.train(algorithm, family, plan, sink=log.append)
    first, last = (np.mean([x["return/trial"] for x in part]) for part in (log[:5], log[-5:]))
    assert last > first + 4


def test_settings(monkeypatch):
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        playground.playground(horizon=0)
    with pytest.raises(ValueError, match="scale=1 must be above 1"):
        playground.playground(scale=1)
    with pytest.raises(ValueError, match="scale=0.5 must lie between 1 and 10"):
        playground.playground(scale=0.5)
    with pytest.raises(
        ValueError, match="body='CheetahRuns' is unknown: did you mean 'CheetahRun'"
    ):
        playground.playground("CheetahRuns")
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(ImportError, match=r'pip install "jaxmeta\[playground\]"'):
        playground.playground()
