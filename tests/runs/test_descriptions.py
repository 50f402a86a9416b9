"""What identifies a run: another algorithm, other settings and other tasks are another run."""

import dataclasses
import json

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxmeta import curricula, tasks
from jaxmeta.algorithms import ALGORITHMS, maml, rl2
from jaxmeta.networks.recurrent import gru, lstm
from jaxmeta.runs import checkpoints, descriptions, records, training
from jaxmeta.runs.checkpoints import CheckpointError
from tests.probes import taken_by

QUIET = Console(quiet=True)
FAMILY = tasks.make("navigation", horizon=3)
CONFIG = maml.Config(num_streams=2, hidden_sizes=(4,))
HYPER = maml.Hyper()
PLAN = training.Config(meta_updates=1, num_tasks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of MAML that nobody has described."""
    folder = tmp_path_factory.mktemp("run") / "maml"
    training.train(maml.maml(FAMILY, CONFIG), FAMILY, PLAN, folder=folder, console=QUIET)
    return folder


def resume(folder, algorithm, family=FAMILY):
    return training.train(algorithm, family, PLAN, folder=folder, resume=True, console=QUIET)


def goals(seed):
    return FAMILY.env.default_params.replace(goal=jax.random.normal(jax.random.key(seed), (5, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: maml.maml(FAMILY, CONFIG, HYPER._replace(learning_rate=0.1)),
            "hyper.learning_rate is 0.1 and was 0.005",
        ),
        (
            lambda: maml.maml(FAMILY, dataclasses.replace(CONFIG, first_order=True)),
            "config.first_order is True and was False",
        ),
        (
            lambda: maml.maml(FAMILY, dataclasses.replace(CONFIG, inner_surrogate="dice")),
            "config.inner_surrogate is 'dice' and was 'lvc'",
        ),
        (
            lambda: maml.maml(FAMILY, CONFIG, optimizer=lambda rate: optax.adam(rate, b1=0.5)),
            "arguments.optimizer is '.*<lambda>' and was None",
        ),
        (
            lambda: maml.maml(FAMILY, CONFIG)._replace(step=lambda key, state, tasks: (state, {})),
            r"replaced is \['step'\] and was \[\]",
        ),
        (
            lambda: maml.maml(FAMILY, CONFIG)._replace(description=None),
            "algorithm is None and was 'maml'",
        ),
    ],
)
def test_another_algorithm_does_not_resume(folder, make, message):
    with pytest.raises(CheckpointError, match=message):
        resume(folder, make())


def test_other_tasks_do_not_resume(folder, tmp_path):
    other = dataclasses.replace(FAMILY, train=lambda key: FAMILY.train(jax.random.fold_in(key, 1)))
    with pytest.raises(CheckpointError, match="draws other tasks in its split 'train'"):
        resume(folder, maml.maml(FAMILY, CONFIG), other)
    first, second = (tasks.from_list(FAMILY, goals(seed), test=goals(2)) for seed in (0, 1))
    algorithm = maml.maml(first, CONFIG)
    training.train(algorithm, first, PLAN, folder=tmp_path / "run", console=QUIET)
    with pytest.raises(CheckpointError, match="draws other tasks in its split 'train'") as error:
        resume(tmp_path / "run", algorithm, second)
    assert "'test'" not in str(error.value)
    resume(tmp_path / "run", algorithm, tasks.from_list(FAMILY, goals(0), test=goals(2)))


def test_the_same_run_made_anew_resumes(folder):
    family = tasks.make("navigation", horizon=3)
    resume(folder, maml.maml(family, CONFIG, maml.Hyper(learning_rate=np.float32(5e-3))), family)


def test_a_checkpoint_of_an_older_version_resumes(folder, tmp_path):
    """Its description holds the family's name and horizon alone."""
    algorithm = maml.maml(FAMILY, CONFIG, HYPER._replace(learning_rate=0.1))
    whole = json.loads((folder / "config.json").read_text())
    old = {name: whole[name] for name in ("family", "horizon", "training")}
    target = jax.eval_shape(lambda: training.begin(jax.random.key(0), algorithm=algorithm))
    _, run = checkpoints.restore(folder / "checkpoints", target, whole)
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, 1, run, old)
    resume(tmp_path, algorithm)
    other = dataclasses.replace(FAMILY, name="other")
    with pytest.raises(CheckpointError, match="family is 'other' and was 'navigation'"):
        resume(tmp_path, algorithm, other)


@pytest.mark.slow
def test_a_population_is_of_its_settings_alone(tmp_path):
    plan = dict(num_seeds=1, hypers=[HYPER], folder=tmp_path / "run", console=QUIET)
    training.train_population(maml.maml(FAMILY, CONFIG), FAMILY, PLAN, **plan)
    unused = maml.maml(FAMILY, CONFIG, HYPER._replace(learning_rate=0.1))
    training.train_population(unused, FAMILY, PLAN, resume=True, **plan)
    plan["hypers"] = [HYPER._replace(learning_rate=0.1)]
    with pytest.raises(CheckpointError, match="population.hypers is"):
        training.train_population(unused, FAMILY, PLAN, resume=True, **plan)


def test_every_algorithm_is_described():
    bandit = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=4)
    for name, module in ALGORITHMS.items():
        family = taken_by(name, bandit)
        try:
            algorithm = getattr(module, name)(family)
        except ValueError:  # for families with features only
            algorithm = getattr(module, name)(tasks.make("gridworld"))
        described = descriptions.of(algorithm, family, with_tasks=False)
        assert described["algorithm"] == name
        assert described["arguments"] == {}
        assert described["replaced"] == []
        config = {x.name: x.default for x in dataclasses.fields(module.Config)}
        assert records.plain(described["config"]) == records.plain(config)
        assert set(described["hyper"]) == set(module.Hyper._fields)
        hash(algorithm)  # a static argument of compiled functions


def test_objects_are_described_by_their_names():
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=4)
    for memory, name in ((gru(4), "gru"), (lstm(4), "lstm")):
        algorithm = rl2.rl2(family, memory=memory, optimizer=optax.sgd)
        described = descriptions.of(algorithm, family, with_tasks=False)
        assert described["arguments"] == {"memory": name, "optimizer": "sgd"}
        records.plain(described)


def test_an_algorithm_trains_on_the_family_that_it_was_made_for():
    algorithm = maml.maml(FAMILY, CONFIG)
    with pytest.raises(
        ValueError, match=r"horizon=3 of .* has horizon=5. Make it .*: maml\(family"
    ):
        training.train(algorithm, tasks.make("navigation", horizon=5), PLAN, console=QUIET)
    with pytest.raises(ValueError, match="has horizon=5"):
        training.train_population(
            algorithm, tasks.make("navigation", horizon=5), PLAN, console=QUIET
        )
    clipped = tasks.transform.faulty(FAMILY, rate=0.1)
    with pytest.raises(ValueError, match="env is a .*, and was a "):
        training.train(algorithm, clipped, PLAN, console=QUIET)
    # Other tasks, and the same family made anew, are no other environment.
    other = dataclasses.replace(FAMILY, train=FAMILY.out_of_distribution)
    for family in (other, tasks.make("navigation", horizon=3)):
        descriptions.check_made_for(algorithm, family, 2)
    descriptions.check_made_for(algorithm._replace(description=None), tasks.make("cartpole"), 2)


def test_trials_that_make_no_minibatches_are_refused_before_compiling(capsys):
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=4)
    algorithm = rl2.rl2(family, rl2.Config(num_streams=2))
    message = "num_minibatches=4 must divide the number of trials, num_tasks=3 × num_streams=2 = 6"
    for train in (training.train, training.train_population):
        with pytest.raises(ValueError, match=message):
            train(algorithm, family, training.Config(num_tasks=3))
    assert capsys.readouterr() == ("", "")


def test_settings_of_a_population_are_of_the_algorithm():
    with pytest.raises(
        TypeError, match=r"hypers\[0\] is algorithms.maml.Config .*; it must be .*maml.Hyper"
    ):
        training.train_population(maml.maml(FAMILY, CONFIG), FAMILY, PLAN, hypers=[CONFIG])


class Sized:
    def __init__(self, size, **others):
        self.size = size
        self.others = others


def test_environments_differ_in_their_numbers():
    differs = descriptions.different
    env = gymnax.make("CartPole-v1")[0]
    assert differs(env, gymnax.make("CartPole-v1")[0]) == ""
    assert "env is a Pendulum" in differs(env, gymnax.make("Pendulum-v1")[0])
    assert differs(Sized(3), Sized(np.int64(3))) == ""
    assert differs(Sized(3), Sized(4)) == "env.size is 4, and was 3"
    assert (
        differs(Sized(3, at=(1, [2])), Sized(3, at=(1, [3])))
        == "env.others['at'][1][0] is 3, and was 2"
    )
    assert (
        differs(Sized(3, at=(1,)), Sized(3, at=(1, 2)))
        == "env.others['at'] has 2 entries, and had 1"
    )
    assert differs(Sized(np.ones(2)), Sized(jnp.ones(2))) == ""
    assert differs(Sized(np.ones(2)), Sized(np.zeros(2))) == "env.size is another array"
    assert differs(Sized(lambda: 1), Sized(lambda: 2)) == ""


def test_a_curriculum_of_another_family_is_refused():
    """Else the run would learn from tasks that are none of its family, and be described as of that family."""
    family = tasks.make("tabular", num_states=2, num_actions=2, horizon=3)
    others = (
        dataclasses.replace(family, name="fixed", train=lambda key: family.env.default_params),
        tasks.make("tabular", num_states=2, num_actions=2, horizon=4),
    )
    algorithm = rl2.rl2(family, rl2.Config(num_minibatches=1), memory=gru(2))
    for other in others:
        message = f"curriculum 'plr' draws the training tasks of another family, '{other.name}'"
        for train in (training.train, training.train_population):
            with pytest.raises(ValueError, match=message):
                train(algorithm, family, PLAN, curriculum=curricula.plr(other), console=QUIET)
    same = tasks.make("tabular", num_states=2, num_actions=2, horizon=3)
    for fits in (None, curricula.plr(family), curricula.plr(same)):
        descriptions.check_draws_from(fits, family)
    without = dataclasses.replace(curricula.plr(others[0]), family=None)
    descriptions.check_draws_from(without, family)
