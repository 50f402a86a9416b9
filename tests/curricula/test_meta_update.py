"""A meta-update under a curriculum: the algorithm's own step on the drawn tasks, and errors for what does not fit."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import curricula, tasks
from jaxmeta.algorithms.maml import Config as MamlConfig
from jaxmeta.algorithms.maml import maml
from jaxmeta.algorithms.recurrent_q import recurrent_q
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.curricula.meta_update import check_fits, step
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import checkpoints
from jaxmeta.types import Curriculum, Draw, Source
from tests.probes import thorough

FAMILY = tasks.make("tabular", num_states=3, num_actions=2, horizon=4)


def fixed(learns, needs=("returns",)):
    """A curriculum that draws independent tasks, says which to learn from, and keeps their returns."""
    learns = jnp.asarray(learns)

    def draw(key, state, meta, num_tasks):
        drawn = tasks.sample_tasks(key, FAMILY, num_tasks, split="train")
        return state, Draw(drawn, learns, ())

    def update(state, drawn, results):
        return results.returns, {"env_steps": jnp.asarray(7, jnp.int32)}

    return Curriculum(
        lambda num_tasks: jnp.zeros(num_tasks), draw, update, needs, {"name": "fixed"}
    )


ALGORITHMS = {
    "rl2": rl2(FAMILY, Config(num_episodes=2, num_streams=2, num_minibatches=2), memory=gru(3)),
    "maml": maml(FAMILY, MamlConfig(num_streams=3, hidden_sizes=(3,))),
}


@pytest.fixture(scope="module", params=thorough(ALGORITHMS, ("rl2",)))
def updates(request):
    """One meta-update of an algorithm by its own step, and under curricula: ``{learns: (state, taught, metrics)}``."""
    algorithm = ALGORITHMS[request.param]
    state = jax.jit(algorithm.init)(jax.random.key(0))
    task_key, step_key = jax.random.split(jax.random.key(1))

    def plain(state):
        drawn = tasks.sample_tasks(task_key, FAMILY, 4, split="train")
        return algorithm.step(step_key, state, drawn)

    found = {}
    for name, learns in {"all": [True] * 4, "none": [False] * 4, "some": [True, False] * 2}.items():
        curriculum = fixed(learns)
        how = dict(algorithm=algorithm, curriculum=curriculum, num_tasks=4)
        call = jax.jit(lambda state, how=how: step(task_key, step_key, state, jnp.zeros(4), **how))
        found[name] = call(state)
    return state, jax.jit(plain)(state), found


def test_learning_from_all_tasks_is_the_algorithm_s_own_step(updates):
    _, (state, metrics), found = updates
    taught, _, theirs = found["all"]
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(taught), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert theirs["env_steps"] == metrics["env_steps"] + 7
    assert theirs["skipped_updates"] == 0


def test_learning_from_no_task_changes_no_parameter(updates):
    before, _, found = updates
    after, returns, metrics = found["none"]
    assert checkpoints.digest(after.meta.params) == checkpoints.digest(before.meta.params)
    assert checkpoints.digest(after.optimizer) == checkpoints.digest(before.optimizer)
    assert after.num_updates == 0
    # That is no failure, and the tasks are tried all the same.
    assert metrics["skipped_updates"] == 0
    assert np.all(np.isfinite(returns))
    np.testing.assert_allclose(returns, found["all"][1], rtol=1e-5)


def test_learning_from_some_tasks_is_another_step(updates):
    _, _, found = updates
    some, every = (found[x][0].meta.params for x in ("some", "all"))
    assert checkpoints.digest(some) != checkpoints.digest(every)
    assert found["some"][0].num_updates == 1


def test_what_does_not_fit_is_refused_by_name():
    curriculum, rl = fixed([True] * 4), ALGORITHMS["rl2"]
    check_fits(None, recurrent_q(FAMILY))
    check_fits(curriculum, rl)
    with pytest.raises(
        ValueError, match="recurrent_q cannot be trained under .*no step_with_results"
    ):
        check_fits(curriculum, recurrent_q(FAMILY))
    with pytest.raises(ValueError, match="curriculum must be None with a source"):
        check_fits(curriculum, rl, Source(None, None, {}))
    with pytest.raises(ValueError, match="its step was replaced"):
        check_fits(curriculum, rl._replace(step=lambda *inputs: inputs))
    check_fits(curriculum, rl._replace(step=rl.step))


def test_what_an_algorithm_does_not_report_is_named_before_compiling():
    algorithm, curriculum = ALGORITHMS["maml"], curricula.plr(FAMILY)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    taught = jax.eval_shape(lambda: curriculum.init(4))
    key, other = jax.random.split(jax.random.key(0))
    how = dict(algorithm=algorithm, curriculum=curriculum, num_tasks=4)
    message = "maml cannot be trained under the curriculum 'plr': the curriculum needs best, reward, value"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *states: step(key, other, *states, **how), state, taught)


SHARED_RUN = """
import sys
import jax, numpy as np
from jaxmeta import curricula, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

folder, devices = sys.argv[1:]
assert jax.device_count() == int(devices)
family = tasks.make("maze", size=3, horizon=6)
algorithm = rl2(family, Config(num_minibatches=2), memory=gru(3))
settings = dict(capacity=12, fill=0.5, score="absolute_advantage")
teachers = {
    "accel": curricula.accel(family, curricula.ACCELConfig(**settings)),
    "sfl": curricula.sfl(algorithm, family, curricula.SFLConfig(16, 8, every=2)),
}
for name, curriculum in teachers.items():
    plan = training.Config(meta_updates=5, num_tasks=8, report_seconds=0.0)
    run = training.train(algorithm, family, plan, curriculum=curriculum)
    leaves = jax.tree.leaves((run.state, run.curriculum))
    np.save(f"{folder}/{name}-{devices}.npy", np.concatenate([np.ravel(x) for x in leaves]))
"""


@pytest.mark.slow
def test_devices_change_no_result(tmp_path):
    """Four simulated devices against one, in several calls of the program."""
    for devices in (1, 4):
        flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", SHARED_RUN, str(tmp_path), str(devices)]
        told = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
        subprocess.run(command, env=os.environ | told, check=True)
    for name in ("accel", "sfl"):
        one, four = (np.load(tmp_path / f"{name}-{devices}.npy") for devices in (1, 4))
        assert one.size > 100
        np.testing.assert_allclose(four, one, rtol=1e-9, atol=1e-12)
