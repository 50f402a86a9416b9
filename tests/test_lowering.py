"""Programs for accelerators, on a machine without one: all that jax does before the accelerator's own compiler.

A program is traced as on an accelerator and lowered for CUDA and for TPUs. A primitive without a rule there raises, and
a call of a library of solvers, such as LAPACK or cuSOLVER, is found by its name.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxmeta import datasets, evaluation, rollouts, tasks
from jaxmeta.algorithms import ALGORITHMS
from tests.algorithms.test_numbers import SMALL, VALUES
from tests.probes import QUICK_FAMILIES, made, thorough

PLATFORMS = ("cuda", "tpu")
OWN_CALLS = {"AllocateBuffer", "Sharding", "TopK", "cu_threefry2x32_ffi"}
"""Targets of custom calls that are jax's own on these platforms."""


def check_lowers(monkeypatch, function):
    """Raises unless ``function(seed)`` lowers for accelerators without a call of a library."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    module = export.export(jax.jit(function), platforms=PLATFORMS)(seed).mlir_module()
    calls = set(re.findall(r"custom_call @([\w.$]+)", module))
    assert calls <= OWN_CALLS, f"calls {sorted(calls - OWN_CALLS)}"


def made_small(name):
    """``(algorithm, family)`` at sizes that trace quickly."""
    (family_name, family_settings), settings, _ = VALUES[name]
    module = ALGORITHMS[name]
    known = {field.name for field in dataclasses.fields(module.Config)}
    config = module.Config(**{k: v for k, v in SMALL.items() if k in known} | settings)
    family = tasks.make(family_name, **family_settings)
    return getattr(module, name)(family, config), family


@pytest.mark.parametrize("name", thorough(ALGORITHMS, ("rl2",)))
def test_every_algorithm_lowers_for_accelerators(monkeypatch, name):
    """Drawing tasks, the first state and a meta-update."""
    algorithm, family = made_small(name)

    def update(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        batch = tasks.sample_tasks(keys[0], family, 2, split="train")
        if name == "algorithm_distillation":
            lived = datasets.mixtures(keys[3], batch, family=family, num_streams=1, num_episodes=2)
            batch = jax.tree.map(lambda x: x[:, 0], lived.data)
        state, metrics = algorithm.step(keys[1], algorithm.init(keys[2]), batch)
        return state, metrics

    check_lowers(monkeypatch, update)


@pytest.mark.parametrize("name", thorough(QUICK_FAMILIES, ("navigation",)))
def test_rollouts_lower_for_accelerators(monkeypatch, name):
    family = made(name)
    learner = evaluation.controller_learner(lambda key, task, obs: family.random_action(key))
    setup = rollouts.Setup(learner, family.env, 2, 5)

    def act(seed):
        task_key, key = jax.random.split(jax.random.key(seed))
        return rollouts.sample(key, (), family.train(task_key), (), setup=setup).reward

    check_lowers(monkeypatch, act)


@pytest.mark.parametrize("name", thorough(("maml", "rl2"), ()))
def test_evaluations_lower_for_accelerators(monkeypatch, name):
    algorithm, family = made_small(name)
    how = dict(learner=algorithm.learner, env=family.env, num_steps=family.horizon)

    def evaluate(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        meta = algorithm.init(keys[0]).meta
        drawn = tasks.sample_tasks(keys[1], family, 3, split="test")
        if name == "rl2":
            return evaluation.trials(keys[2], meta, drawn, **how).reward
        told = dict(num_streams=2, num_updates=1)
        return evaluation.adaptation_returns(keys[2], meta, drawn, **how, **told)

    check_lowers(monkeypatch, evaluate)


@pytest.mark.parametrize(
    "planted", [jnp.linalg.cholesky, lambda x: jnp.linalg.eigh(x)[0], jnp.linalg.eigvals]
)
def test_a_planted_call_of_a_library_is_caught(monkeypatch, planted):
    def function(seed):
        x = jax.random.normal(jax.random.key(seed), (3, 3))
        return planted(x @ x.T)

    with pytest.raises((AssertionError, NotImplementedError)):
        check_lowers(monkeypatch, function)
