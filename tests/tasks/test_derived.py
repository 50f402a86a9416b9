"""Parameters that follow from others follow wherever physics are set or drawn."""

import dataclasses

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import control, derived, transform

CARTPOLE = transform.from_gymnax("CartPole-v1", horizon=5)
ACROBOT = transform.from_gymnax("Acrobot-v1", horizon=5)


def assert_consistent(task):
    np.testing.assert_allclose(task.total_mass, task.masscart + task.masspole, rtol=1e-6)
    np.testing.assert_allclose(task.polemass_length, task.masspole * task.length, rtol=1e-6)


@pytest.mark.parametrize(
    "ranges", [{"length": (0.3, 2.0)}, {"masscart": (2.0, 3.0)}, {"masspole": (0.2, 1.0)}]
)
def test_drawn_cartpoles_are_consistent(ranges):
    (name,) = ranges
    for family in (CARTPOLE, transform.permuted_observations(CARTPOLE)):
        family = transform.drawn_parameters(family, ranges)
        for split in tasks.SPLITS:
            drawn = tasks.sample_tasks(jax.random.key(0), family, 5, split=split)
            drawn = getattr(drawn, "inner", drawn)
            assert len(np.unique(getattr(drawn, name))) == 5
            assert_consistent(drawn)


def test_set_cartpoles_are_consistent():
    task = transform.with_parameters(CARTPOLE, length=2.0, masspole=0.5).train(jax.random.key(0))
    assert_consistent(task)
    assert (float(task.polemass_length), float(task.length)) == (1.0, 2.0)


def test_what_follows_from_others_is_not_set():
    for name, sources in (
        ("total_mass", "masscart and masspole"),
        ("polemass_length", "masspole and length"),
    ):
        assert name not in transform.parameter_fields(CARTPOLE)
        message = f"parameter='{name}' follows from {sources}: set those instead"
        with pytest.raises(ValueError, match=message):
            transform.drawn_parameters(CARTPOLE, {name: (1.0, 2.0)})
        with pytest.raises(ValueError, match=message):
            transform.with_parameters(CARTPOLE, **{name: 1.0})


def test_the_middle_of_a_rod_follows_unless_it_is_set():
    task = transform.with_parameters(ACROBOT, link_length_1=0.4).train(jax.random.key(0))
    assert (float(task.link_com_pos_1), float(task.link_com_pos_2)) == (np.float32(0.2), 0.5)
    task = transform.with_parameters(ACROBOT, link_length_1=0.4, link_com_pos_1=0.1).train(
        jax.random.key(0)
    )
    assert task.link_com_pos_1 == np.float32(0.1)


def test_a_cartpole_of_given_physics():
    family = tasks.make("cartpole")
    task = control.cartpole_task(length=2.0, masspole=0.5, masscart=3.0)
    assert_consistent(task)
    tasks.from_list(family, jax.tree.map(lambda x: x[None], task))
    given = jax.tree.map(lambda x: (x.shape, x.dtype), (task, family.train(jax.random.key(0))))
    assert given[0] == given[1]
    default = family.env.default_params.replace(max_steps_in_episode=200)
    for x, y in zip(
        jax.tree.leaves(control.cartpole_task()), jax.tree.leaves(default), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    lengths = jnp.array([0.3, 0.6])
    many = jax.vmap(lambda x: control.cartpole_task(length=x))(lengths)
    np.testing.assert_allclose(many.polemass_length, 0.1 * lengths, rtol=1e-6)
    for wrong in (dict(length=0.0), dict(gravity=np.nan), dict(horizon=0)):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            control.cartpole_task(**wrong)
    with pytest.raises(TypeError, match="length='1' must be a number"):
        control.cartpole_task(length="1")


def test_no_other_environment_s_defaults_say_that_a_parameter_follows():
    """By gymnax's own defaults the known rules hold; the names are those of its parameters."""
    for kind, known in derived.DERIVED.items():
        params = kind()
        names = {x.name for x in dataclasses.fields(params)}
        for name, one in known.items():
            assert {name, *one.sources} <= names
            value = one.derive(*(getattr(params, x) for x in one.sources))
            np.testing.assert_allclose(getattr(params, name), value)
    assert {type(gymnax.make(x)[1]) for x in ("CartPole-v1", "Acrobot-v1")} == set(derived.DERIVED)
