"""A learner that does not fit an environment is refused in plain words, before anything compiles."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import maml, rl2
from jaxmeta.networks.recurrent import gru
from jaxmeta.rollouts.fits import check_fits

FAMILY = tasks.make("navigation", horizon=3)
ALGORITHM = maml.maml(FAMILY, maml.Config(num_streams=2, hidden_sizes=(4,)))
STATE = jax.eval_shape(ALGORITHM.init, jax.random.key(0))
KEY = jax.random.key(0)


def drawn(family):
    return tasks.sample_tasks(KEY, family, 2, split="test")


def test_what_fits_is_let_through():
    check_fits(STATE.meta, drawn(FAMILY), learner=ALGORITHM.learner, env=FAMILY.env)


@pytest.mark.parametrize("name", ["cartpole", "pendulum"])
def test_a_learner_of_another_family(name):
    other = tasks.make(name, horizon=3)
    how = dict(learner=ALGORITHM.learner, env=other.env, num_steps=3)
    message = (
        "learner does not fit .*, whose observations have shape .*: it was made for another family"
    )
    with pytest.raises(ValueError, match=message):
        evaluation.adaptation_curve(
            KEY, STATE.meta, drawn(other), **how, num_streams=1, num_updates=0
        )
    algorithm = rl2.rl2(FAMILY, memory=gru(4))
    meta = jax.eval_shape(algorithm.init, KEY).meta
    with pytest.raises(ValueError, match="learner does not fit"):
        evaluation.trials(
            KEY, meta, drawn(other), learner=algorithm.learner, env=other.env, num_steps=3
        )


def test_actions_of_another_kind():
    discrete = ALGORITHM.learner._replace(act=lambda *x: (jnp.zeros((), int), 0.0, ()))
    with pytest.raises(ValueError, match="learner does not fit .*: its action is int32"):
        check_fits(STATE.meta, drawn(FAMILY), learner=discrete, env=FAMILY.env)


def test_a_population_has_to_be_chosen_from():
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 3, *x.shape), x.dtype), STATE.meta)
    with pytest.raises(
        ValueError, match=r"choose a member: jax.tree.map\(lambda x: x\[0, 0\], meta\)"
    ):
        evaluation.adaptation_curve(
            KEY,
            many,
            drawn(FAMILY),
            learner=ALGORITHM.learner,
            env=FAMILY.env,
            num_streams=1,
            num_updates=0,
            num_steps=3,
        )


def test_a_wrong_meta_is_still_said_by_itself():
    with pytest.raises(TypeError, match="meta is .*; its .meta is one"):
        check_fits(STATE, drawn(FAMILY), learner=ALGORITHM.learner, env=FAMILY.env)
