"""Presets: each makes an algorithm on its family, and they say what the papers and scripts say."""

import math

import jax
import pytest

from jaxmeta.runs import experiments, presets
from jaxmeta.runs.experiments import Experiment
from tests.probes import made


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_named_for_what_it_is_and_can_be_made(name):
    experiment = presets.PRESETS[name]
    variant, family = name.split("-")[:2]
    assert variant in {experiment.algorithm, *presets.VARIANTS}
    assert family in experiment.family
    made(experiment.family)  # skips where its package is missing
    algorithm, family = experiments.make(experiment)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert state.meta.hyper._fields
    assert family.horizon >= 1


def test_everything_compared_has_the_same_experience_a_meta_update():
    for family in presets.COLUMNS:
        maml = presets.compared("maml", family)
        for variant in ("promp", "cavia", "reptile", "imaml", "no_meta_learning"):
            other = presets.compared(variant, family)
            assert other.plan == maml.plan
            assert other.config["num_streams"] == maml.config["num_streams"]
            assert other.family_settings == maml.family_settings
    assert presets.compared("es", "navigation").plan.num_tasks == 4  # each in 16 perturbations


def test_sizes_can_be_told():
    experiment = presets.compared("maml", "cartpole", meta_updates=10, num_tasks=3, num_streams=4)
    assert (experiment.plan.meta_updates, experiment.plan.num_tasks) == (2, 3)
    assert experiment.config["num_streams"] == 4
    assert experiment.hyper == {"step_size": 0.1}


def test_implicit_maml_is_pulled_as_hard_as_its_step_is_short():
    hyper = presets.compared("imaml", "pendulum").hyper
    assert hyper["step_size"] * hyper["proximal"] == pytest.approx(0.5)


def test_a_sparse_reward_is_learned_slowly_by_adam():
    assert presets.compared("promp", "sparse_navigation").hyper["learning_rate"] == 1e-3
    assert "learning_rate" not in presets.compared("reptile", "sparse_navigation").hyper


def test_lasting_stretches_what_falls():
    longer = presets.lasting(presets.PRESETS["rl2-gridnavi"], 1000)
    assert longer.plan.meta_updates == longer.hyper["anneal_updates"] == 1000
    assert longer.plan.num_tasks == presets.PRESETS["rl2-gridnavi"].plan.num_tasks
    assert presets.lasting(Experiment(), 3).hyper == {}
    never = presets.lasting(presets.PRESETS["varibad-gridnavi-published"], 10)
    assert never.plan.meta_updates == 10
    assert never.hyper["anneal_updates"] == math.inf


def test_learners_with_memory_are_annealed_to_the_end():
    for name, experiment in presets.PRESETS.items():
        if name == "varibad-gridnavi-published":
            assert experiment.hyper["anneal_updates"] == math.inf
        elif experiment.algorithm in ("recurrent_q", "rl2", "varibad"):
            assert experiment.hyper["anneal_updates"] == experiment.plan.meta_updates, name
