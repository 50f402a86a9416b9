"""Experiments as data: what they say, what they make, and what a folder gives back."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import jaxmeta
from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import ALGORITHMS, maml
from jaxmeta.runs import experiments, presets, training
from jaxmeta.runs.checkpoints import CheckpointError
from jaxmeta.runs.experiments import Experiment

QUIET = Console(quiet=True)
SMALL = Experiment(
    "maml",
    "navigation",
    config=dict(num_streams=3, hidden_sizes=(8,)),
    hyper=dict(step_size=0.3),
    family_settings=dict(horizon=5),
    plan=training.Config(meta_updates=2, num_tasks=2, seed=7),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "maml"
    return folder, experiments.train(SMALL, folder=folder, console=QUIET)


def test_a_folder_gives_back_what_was_learned(trained):
    folder, run = trained
    loaded = jaxmeta.load(folder)
    chex.assert_trees_all_equal(loaded.meta, run.state.meta)
    assert int(loaded.run.num_updates) == 2
    assert experiments.describe(loaded.experiment) == experiments.describe(SMALL)
    assert loaded.experiment.plan == SMALL.plan
    assert experiments.read(folder) == loaded.experiment
    held_out = tasks.sample_tasks(jax.random.key(0), loaded.family, 2, split="test")
    returns = evaluation.adaptation_returns(
        jax.random.key(1),
        loaded.meta,
        held_out,
        learner=loaded.learner,
        env=loaded.family.env,
        num_streams=2,
        num_updates=1,
        num_steps=loaded.family.horizon,
    )
    assert returns.shape == (2, 2)


@pytest.mark.slow
def test_what_was_loaded_trains_on(trained, tmp_path):
    """A longer run from the loaded state is the longer run."""
    folder, _ = trained
    loaded = jaxmeta.load(folder)
    longer = dataclasses.replace(SMALL, plan=dataclasses.replace(SMALL.plan, meta_updates=4))
    whole = experiments.train(longer, console=QUIET)
    run, _ = jax.jit(
        lambda run: training.advance(
            run, 2, algorithm=loaded.algorithm, family=loaded.family, num_tasks=2, max_updates=2
        )
    )(loaded.run)
    chex.assert_trees_all_close(run.state.meta, whole.state.meta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "hypers",
    [pytest.param(None, marks=pytest.mark.slow), [dict(step_size=0.1), dict(step_size=0.2)]],
)
def test_a_population_is_given_back_whole(hypers, tmp_path):
    algorithm, family = experiments.make(SMALL)
    hypers = hypers and [ALGORITHMS["maml"].Hyper(**x) for x in hypers]
    run = training.train_population(
        algorithm,
        family,
        SMALL.plan,
        num_seeds=3,
        hypers=hypers,
        folder=tmp_path / "population",
        description=experiments.describe(SMALL),
        console=QUIET,
    )
    loaded = jaxmeta.load(tmp_path / "population")
    chex.assert_trees_all_equal(loaded.meta, run.state.meta)
    assert loaded.run.num_updates.shape == (len(hypers or [None]), 3)


@pytest.mark.slow
def test_finetuning_begins_with_what_was_learned_and_other_numbers(trained, tmp_path):
    folder, run = trained
    plan = training.Config(meta_updates=1, num_tasks=2, seed=3)
    lines = []
    tuned = experiments.finetune(
        folder,
        hyper=dict(learning_rate=0.0, step_size=0.2),
        plan=plan,
        folder=tmp_path / "tuned",
        console=QUIET,
        sink=lines.append,
    )
    # Without a learning rate nothing moves: the parameters are those of the run.
    chex.assert_trees_all_equal(tuned.state.meta.params, run.state.meta.params)
    assert tuned.state.meta.hyper.step_size == np.float32(0.2)
    assert tuned.state.meta.hyper.discount == run.state.meta.hyper.discount
    assert [line["update"] for line in lines] == [1]
    loaded = jaxmeta.load(tmp_path / "tuned")
    assert loaded.experiment.hyper["step_size"] == 0.2
    assert loaded.experiment.plan == plan
    other = experiments.finetune(
        jaxmeta.load(folder),
        hyper=dict(learning_rate=0.0),
        family=tasks.make("navigation", horizon=6),
        plan=plan,
        console=QUIET,
    )
    chex.assert_trees_all_equal(other.state.meta.params, run.state.meta.params)
    for hyper, message in (
        (dict(stepsize=1.0), "hyper='stepsize' is unknown: did you mean 'step_size'"),
        (dict(learning_rate=-1.0), "learning_rate=-1.0 must lie between 0"),
        (dict(learning_rate="1e-4"), r"hyper\['learning_rate'\]='1e-4' must be a number"),
        (maml.Hyper(), "must be a dictionary of numbers by name"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            experiments.finetune(folder, hyper=hyper, console=QUIET)


def test_runs_that_cannot_be_finetuned(own):
    folder, algorithm, family, _ = own
    loaded = jaxmeta.load(folder / "run", algorithm=algorithm, family=family)
    with pytest.raises(ValueError, match="make the algorithm on the other family"):
        experiments.finetune(
            loaded._replace(algorithm=algorithm._replace(description=None)),
            family=tasks.make("navigation", horizon=3),
        )
    many = jax.tree.map(lambda x: x[None], loaded.run)
    with pytest.raises(ValueError, match="trained is a population; choose a member"):
        experiments.finetune(loaded._replace(run=many))
    with pytest.raises(TypeError, match="trained is"):
        experiments.finetune(3)
    message = r"family is 'cartpole' with observations \(4,\) and .*; the run is of 'mine' with observations \(2,\)"
    with pytest.raises(TypeError, match=message):
        experiments.finetune(loaded, family=tasks.make("cartpole"))


OWN = maml.Config(num_streams=2, hidden_sizes=(4,))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of parts that nobody has described, and its folder; of a population, too."""
    family = dataclasses.replace(tasks.make("navigation", horizon=4), name="mine")
    algorithm = maml.maml(family, OWN)
    folder = tmp_path_factory.mktemp("own")
    plan = training.Config(meta_updates=1, num_tasks=2)
    run = training.train(algorithm, family, plan, folder=folder / "run", console=QUIET)
    return folder, algorithm, family, run


def test_parts_of_one_s_own_are_loaded_with_them(own):
    folder, algorithm, family, run = own
    loaded = jaxmeta.load(folder / "run", algorithm=algorithm, family=family)
    chex.assert_trees_all_equal(loaded.run.state, run.state)
    assert loaded.experiment is None
    assert loaded.learner is algorithm.learner
    assert loaded.family is family
    for parts in ({}, dict(algorithm=algorithm), dict(family=family)):
        if "family" in parts:  # the algorithm is the library's, so its name and settings suffice
            chex.assert_trees_all_equal(jaxmeta.load(folder / "run", **parts).run.state, run.state)
            continue
        with pytest.raises(CheckpointError, match="how the family 'mine' was made. Pass family="):
            jaxmeta.load(folder / "run", **parts)
    wider = maml.maml(family, dataclasses.replace(OWN, hidden_sizes=(5,)))
    with pytest.raises(CheckpointError, match=r"is float32\[2, 5\] and was float32\[2, 4\]"):
        jaxmeta.load(folder / "run", algorithm=wider, family=family)
    other = dataclasses.replace(family, name="other")
    with pytest.raises(CheckpointError, match="is of family 'mine' .* family='other' .* is given"):
        jaxmeta.load(folder / "run", algorithm=algorithm, family=other)


@pytest.mark.slow
def test_a_run_that_was_finetuned_on_another_family_is_loaded(trained, tmp_path):
    folder, run = trained
    how = dict(plan=training.Config(meta_updates=1, num_tasks=2), console=QUIET)
    other = tasks.make("navigation", horizon=6)
    experiments.finetune(
        folder, family=other, hyper=dict(learning_rate=0.0), folder=tmp_path / "library", **how
    )
    loaded = jaxmeta.load(tmp_path / "library")
    chex.assert_trees_all_equal(loaded.meta.params, run.state.meta.params)
    assert loaded.family.horizon == 6
    assert loaded.experiment.family_settings == {"horizon": 6}
    assert loaded.experiment.config == dict(loaded.experiment.config) | dict(SMALL.config)
    assert loaded.experiment.hyper["learning_rate"] == 0.0
    # A family of one's own is needed again; the algorithm is not.
    mine = dataclasses.replace(other, train=lambda key: other.train(key).replace(goal=jnp.zeros(2)))
    experiments.finetune(folder, family=mine, folder=tmp_path / "mine", **how)
    with pytest.raises(CheckpointError, match="how the family 'navigation' was made. Pass family="):
        jaxmeta.load(tmp_path / "mine")
    loaded = jaxmeta.load(tmp_path / "mine", family=mine)
    assert loaded.family is mine
    again = experiments.finetune(loaded, family=other, hyper=dict(learning_rate=0.0), **how)
    chex.assert_trees_all_equal(again.state.meta.params, loaded.meta.params)


@pytest.mark.slow
def test_objects_of_one_s_own_go_along(tmp_path):
    """What was made with an object is loaded with the algorithm, and finetuned with the object."""
    family = tasks.make("navigation", horizon=3)
    algorithm = maml.maml(family, OWN, optimizer=optax.sgd)
    plan = training.Config(meta_updates=1, num_tasks=2)
    training.train(algorithm, family, plan, folder=tmp_path / "run", console=QUIET)
    with pytest.raises(
        CheckpointError, match=r"\(optimizer\). Pass algorithm= and family= to load"
    ):
        jaxmeta.load(tmp_path / "run")
    loaded = jaxmeta.load(tmp_path / "run", algorithm=algorithm, family=family)
    other = tasks.make("navigation", horizon=4)
    tuned = experiments.finetune(loaded, family=other, plan=plan, console=QUIET)
    assert jax.tree.structure(tuned.state) == jax.tree.structure(loaded.run.state)


def test_a_described_run_takes_other_parts(trained):
    """A family that stands for its own: the algorithm is made for it."""
    folder, run = trained
    family = tasks.make("navigation", horizon=3)
    loaded = jaxmeta.load(folder, family=family)
    chex.assert_trees_all_equal(loaded.run.state, run.state)
    assert loaded.family is family
    assert loaded.experiment == jaxmeta.load(folder).experiment
    algorithm, _ = experiments.make(SMALL)
    assert jaxmeta.load(folder, algorithm=algorithm).algorithm is algorithm


def test_making_is_what_one_would_write_out():
    algorithm, family = experiments.make(SMALL)
    module = ALGORITHMS["maml"]
    its_family = tasks.make("navigation", horizon=5)
    own = module.maml(
        its_family,
        module.Config(num_streams=3, hidden_sizes=(8,)),
        module.Hyper(step_size=0.3),
    )
    assert family.horizon == 5
    chex.assert_trees_all_equal(algorithm.init(jax.random.key(0)), own.init(jax.random.key(0)))


def test_a_description_names_every_setting_and_survives_json():
    description = experiments.describe(SMALL)
    config = {field.name for field in dataclasses.fields(ALGORITHMS["maml"].Config)}
    assert set(description["config"]) == config
    assert set(description["hyper"]) == set(ALGORITHMS["maml"].Hyper._fields)
    assert description["hyper"]["step_size"] == 0.3
    assert description["family_settings"]["horizon"] == 5
    assert json.loads(json.dumps(description))["config"]["hidden_sizes"] == [8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(algorithm="mamal"), "algorithm='mamal' is unknown: did you mean 'maml'"),
        (dict(family="navigaton"), "family='navigaton' is unknown: did you mean 'navigation'"),
        (dict(config=dict(num_stream=3)), "config of maml on navigation='num_stream' is unknown"),
        (dict(hyper=dict(stepsize=3)), "hyper of maml on navigation='stepsize' is unknown"),
        (dict(family_settings=dict(radius=1)), "family_settings of maml on navigation='radius'"),
    ],
)
def test_what_is_not_known_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json does not exist: .* is no run's folder"),
        ("{", "config.json cannot be read as JSON"),
        ("[]", "holds no description of a run"),
        ("{}", "config.json names no algorithm. Pass algorithm= and family= to load"),
    ],
)
def test_a_folder_that_is_none_is_said(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        jaxmeta.load(tmp_path)


def test_a_setting_of_another_version_is_said(trained, tmp_path):
    folder, _ = trained
    description = json.loads((folder / "config.json").read_text())
    description["hyper"]["warmth"] = 1.0
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="hyper of maml on navigation='warmth' is unknown"):
        jaxmeta.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.pretrained_names())
def test_a_pretrained_run_is_as_good_as_it_was_measured(name):
    loaded = jaxmeta.load(jaxmeta.pretrained(name))
    assert int(loaded.run.num_updates) == loaded.experiment.plan.meta_updates
    assert experiments.describe(loaded.experiment) == experiments.describe(presets.PRESETS[name])
    family, config = loaded.family, loaded.experiment.config
    held_out = tasks.sample_tasks(jax.random.key(0), family, 100, split="test")
    acting = dict(learner=loaded.learner, env=family.env)
    if loaded.experiment.algorithm in ("recurrent_q", "rl2", "varibad"):
        num_steps = config["num_episodes"] * family.horizon
        trials = evaluation.trials(
            jax.random.key(1), loaded.meta, held_out, **acting, num_steps=num_steps
        )
        returns = evaluation.episode_returns(trials, config["num_episodes"])
    else:
        lived = dict(num_streams=config["num_streams"], num_updates=1, num_steps=family.horizon)
        returns = evaluation.adaptation_returns(
            jax.random.key(1), loaded.meta, held_out, **acting, **lived
        )
    report = json.loads((jaxmeta.pretrained(name) / "evaluation.json").read_text())
    count = returns.shape[1]
    measured = np.asarray(report["returns"][:count])
    # Both are means, of 100 and of 200 tasks; three standard errors of their difference.
    error = 3 * np.std(returns, axis=0) * np.sqrt(1 / 100 + 1 / 200)
    np.testing.assert_array_less(np.abs(np.mean(returns, axis=0) - measured), error + 1e-3)


def test_runs_of_older_versions_are_loaded():
    """The run that comes along was saved before runs had a curriculum."""
    loaded = jaxmeta.load(jaxmeta.pretrained("maml-navigation"))
    assert loaded.run.curriculum == ()
    assert int(loaded.run.num_updates) == loaded.experiment.plan.meta_updates


def test_an_unknown_pretrained_run_is_said():
    with pytest.raises(ValueError, match="name='maml' is unknown: known are 'maml-navigation'"):
        jaxmeta.pretrained("maml")


def test_only_what_is_public_is_found_at_the_top():
    assert jaxmeta.load is experiments.load
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        jaxmeta.lod  # noqa: B018
    assert jaxmeta.pretrained is experiments.pretrained
