"""Whatever is passed in ends in a result or in an error that names the argument: never in a trace of jax's, never in
a result that was broadcast out of a wrong shape."""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import math
import pkgutil
import re
import sys
import traceback
import types
import typing
from pathlib import Path
from typing import Literal

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from gymnax.environments import spaces

import jaxmeta
from jaxmeta import evaluation, networks, references, rollouts, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.estimators import exact
from jaxmeta.learners import update_rules
from jaxmeta.networks import distributions
from jaxmeta.runs import experiments
from jaxmeta.tasks import transform
from jaxmeta.types import TimeStep, Trajectory
from tests.probes import made, taken_by

LIBRARY = Path(jaxmeta.__file__).parent
SCRIPTS = LIBRARY.parent / "benchmarks"
RANDOM = dict(derandomize=True, database=None)
CASES = {"shapes": 30, "scalars": 4, "settings": 15, "configurations": 50, "scripts": 20}
"""Cases of each thing that is tried, by the test that tries it."""


@pytest.fixture(autouse=True, scope="module")
def as_users_have_it():
    """Rank promotion as it is by default, and tracebacks that say where an error was raised."""
    with jax.numpy_rank_promotion("allow"):
        before = jax.config.jax_traceback_filtering
        jax.config.update("jax_traceback_filtering", "off")
        yield
        jax.config.update("jax_traceback_filtering", before)


def assert_names(error, *names):
    """The error is the library's own, of one paragraph, and says which argument is wrong."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    said = f"{type(error).__name__} at {where}: {error}"
    assert where.is_relative_to(LIBRARY) or where.is_relative_to(SCRIPTS), said
    assert len(str(error)) < 1000, said
    assert any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names), said


# Arrays


ARRAYS = {
    "references.posterior_best_arm": "reward=A pulls=A -> A",
    "references.posterior_goal": "reward=C visits=C prior=C -> C",
    "recurrences.linear_recurrence": "a=T... b=T... -> T...",
    "estimators.returns.td_errors": "reward=... discount=...? v=... v_next=... -> ...",
    "estimators.returns.gae": "delta=T discount=T last=T lambda_=T? -> T",
    "estimators.returns.advantages_and_targets": "reward=T discount=T v=T v_next=T last=T lambda_=T? -> ?",
    "estimators.returns.discounted_returns": "reward=T discount=T v_next=T last=T -> T",
    "estimators.returns.importance_returns": "reward=T discount=T v_next=T rho=T last=T -> T",
    "estimators.returns.weighted_importance_returns": "reward=NT discount=NT v_next=NT rho=NT last=NT good=N -> NT",
    "estimators.returns.vtrace_targets": "reward=T discount=T v=T v_next=T rho=T last=T rho_bar=? c_bar=? lambda_=T? -> T",
    "estimators.returns.action_value_targets": "reward=T discount=T q=T v_next=T c=T last=T -> T",
    "estimators.episodes.cumulative_discount": "discount=T first=T -> T",
    "estimators.episodes.episode_step": "first=T -> T",
    "estimators.episodes.first_episode_return": "reward=T last=T -> ?",
    "estimators.episodes.in_first_episode": "last=T -> T",
    "estimators.episodes.episode_index": "last=T -> T",
    "estimators.baselines.baseline_td_errors": "data=NT discount=NT counted=NT -> NT",
    "estimators.units.in_units": "x=... scale=? -> ...",
    "estimators.units.running": "mean=... batch=... known=? -> ...",
    "estimators.units.running_reward_scale": "scale=? reward=... counted=... -> ?",
    "estimators.units.advantage_scale": "advantage=NT counted=NT -> ?",
    "estimators.surrogates.score": "log_ratio=T first=T -> T",
    "estimators.surrogates.lvc": "log_ratio=T first=T -> T",
    "estimators.surrogates.taypo": "log_ratio=T first=T -> T",
    "estimators.surrogates.loaded_dice": "log_ratio=T first=T lambda_=T? -> T",
    "estimators.surrogates.vtrace": "log_ratio=T first=T -> T",
    "estimators.surrogates.surrogate": "log_prob=T log_prob_mu=T delta=T discount=T first=T tau=? -> ?",
    "estimators.surrogates.ppo_clip": "log_prob=T log_prob_mu=T delta=T discount=T first=T tau=? -> ?",
    "estimators.surrogates.clipped_ratio": "log_ratio=... advantage=... epsilon=...? -> ...",
    "estimators.surrogates.semi_gradient": "params=... error=... -> ...",
    "estimators.surrogates.sampling_correction": "log_prob=NT gain=N -> ?",
    "estimators.surrogates.leave_one_out_mean": "x=N good=N -> N",
    "networks.distributions.Categorical.log_prob": "logits=...A value=... -> ...",
    "networks.distributions.Categorical.kl": "logits=...A other=...A -> ...",
    "networks.distributions.DiagGaussian.sample": "mean=...D log_std=...D -> ...D",
    "networks.distributions.DiagGaussian.log_prob": "mean=...D log_std=...D value=...D -> ...",
    "networks.distributions.DiagGaussian.kl": "mean=...D log_std=...D other=...D -> ...",
    "meta_updates.evolution.antithetic": "params=... epsilon=... -> 2...",
    "meta_updates.evolution.gradient": "xi=... fitness=2 noise_std=? -> ...",
    "meta_updates.evolution.perturbation": "params=... noise_std=? -> ...",
    "estimators.exact.softmax_linear": "features=SAF theta=F -> SA",
    "estimators.exact.values": "mdp=SA policy=SA -> 4S",
    "estimators.exact.expected_return": "mdp=SA policy=SA -> ?",
    "estimators.exact.probabilities": "mdp=SA policy=SA states=PH actions=PH -> P",
    "estimators.exact.derivatives": "theta=F -> F",
    "estimators.exact.limit_objective": "theta=F step_size=? -> ?",
    "estimators.exact.batch_expectation": "probability=P -> ?",
    "estimators.exact.finite_batch_objective": "theta=F -> ?",
    "estimators.baselines.linear_features": "obs=T... step=T -> TG",
    "estimators.baselines.linear_baseline": "features=NTF targets=NT ridge=? -> NT",
    "meta_updates.gradients.masked_mean": "results=M... good=M -> ...",
    "evaluation.trials.episode_returns": "trials=MT last=MT good=M -> M3",
    "evaluation.statistics.normalized": "returns=... random=M reference=M -> ...",
    "evaluation.statistics.bootstrap_interval": "x=M -> ?",
    "evaluation.statistics.interquartile_interval": "x=MK -> ?",
    "evaluation.statistics.mean_interval": "x=MK -> ?",
    "evaluation.statistics.gap_closed": "returns=MK optimal=M -> K",
    "evaluation.statistics.summarize": "returns=MK random=M optimal=M -> ?",
}
"""Arguments and results of the functions of arrays in the notation of `checks.shapes`, as their docstrings say
them. ``data``, ``trials`` and ``mdp`` are tuples of arrays, of which one is of this shape."""


def trajectory(shape, reward):
    """Trajectories ``[N, T]`` whose reward may be something else."""
    zeros, no = jnp.zeros(shape), jnp.zeros(shape, bool)
    timestep = TimeStep(jnp.zeros((*shape, 2)), zeros, zeros, no)
    return Trajectory(timestep, zeros, zeros, reward, zeros + 1.0, no, timestep.obs, ())


def mdp(shape, reward):
    num_states, num_actions = shape
    flat = jnp.ones(num_states) / num_states
    moves = jnp.broadcast_to(flat, (num_states, num_actions, num_states))
    return exact.MDP(moves, reward, flat, jnp.asarray(0.9))


def found(name):
    """The function of that dotted name."""
    return pkgutil.resolve_name(f"jaxmeta.{name}")


def call(name, honest, given):
    """``name`` of the arguments ``given``, whose shapes ought to be ``honest``."""
    function = found(name)
    given = dict(given)
    if "data" in given:
        data = trajectory(honest["discount"], given.pop("data"))
        return function(data, given["discount"], 5, given["counted"])
    if "trials" in given:
        trials = evaluation.Trials(None, given["trials"], given["last"], given["good"])
        return function(trials, 3)
    if "mdp" in given:
        own = mdp(honest["policy"], given.pop("mdp"))
        return function(own, **given, **({} if "states" in given else {"horizon": 3}))
    if "distributions" in name:
        kind = distributions.Categorical if "logits" in given else distributions.DiagGaussian
        own = kind(*(given.pop(x) for x in kind._fields))
        if "other" in given:
            return own.kl(kind(*[given["other"]] * len(kind._fields)))
        if name.endswith("sample"):
            return own.sample(jax.random.key(0))
        return own.log_prob(given["value"])
    static = {
        "estimators.surrogates.taypo": dict(order=2),
        "estimators.surrogates.vtrace": dict(rho_bar=2.0, c_bar=2.0),
        "estimators.surrogates.surrogate": dict(weights=lambda log_ratio, first: log_ratio),
        "estimators.surrogates.semi_gradient": dict(value=lambda params: 2.0 * params),
        "meta_updates.evolution.perturbation": dict(key=jax.random.key(0)),
        "estimators.exact.derivatives": dict(objective=lambda theta: jnp.sum(theta**2)),
        "estimators.exact.limit_objective": dict(objective=lambda theta: jnp.sum(theta**2)),
        "estimators.exact.batch_expectation": dict(
            statistic=lambda indices: jnp.sum(indices), batch_size=2
        ),
        "estimators.exact.finite_batch_objective": dict(
            objective=lambda theta: jnp.sum(theta**2),
            update=lambda theta, indices: theta + jnp.sum(indices),
            probabilities=jax.nn.softmax,
            batch_size=2,
        ),
        "estimators.baselines.linear_features": dict(horizon=5),
        "evaluation.statistics.interquartile_interval": dict(num_resamples=3),
        "evaluation.statistics.mean_interval": dict(num_resamples=3),
    }
    result = function(**given, **static.get(name, {}))
    if name == "estimators.exact.derivatives":
        return result[0]
    return result if not isinstance(result, dict | tuple) else jnp.zeros(())


def parsed(name):
    """``({argument: word}, word of the result)`` of an entry of `ARRAYS`."""
    arguments, _, result = ARRAYS[name].partition(" -> ")
    return dict(x.split("=") for x in arguments.split()), result


def tokens(word):
    return re.findall(r"\.{3}|\w", word)


def shape_of(word, sizes):
    """The shape that a word stands for."""
    return sum((sizes[x] if x in sizes else (int(x),) for x in tokens(word)), ())


def sizes_of(words, shapes):
    """The axes' sizes that explain all ``shapes``, or None where nothing does."""
    sizes = {}
    for name, word in words.items():
        shape, axes = shapes[name], tokens(word)
        if word.endswith("?") and shape == ():
            continue
        spare = len(shape) - len(axes) + 1
        if spare != 1 and ("..." not in axes or spare < 0):
            return None
        for axis in axes:
            take = spare if axis == "..." else 1
            here, shape = shape[:take], shape[take:]
            if here != ((int(axis),) if axis.isdigit() else sizes.setdefault(axis, here)):
                return None
    return sizes


@st.composite
def honest_shapes(draw, words):
    axes = sorted({x for word in words.values() for x in tokens(word) if not x.isdigit()})
    counts = draw(st.permutations(range(2, 3 + len(axes))))
    sizes = {axis: (size,) for axis, size in zip(axes, counts, strict=False)}
    if "..." in sizes:
        sizes["..."] = draw(st.sampled_from([(), (7,), (7, 8)]))
    return {name: shape_of(word, sizes) for name, word in words.items()}


@st.composite
def wrong_shape(draw, shape):
    """A shape near this one: another size, a size of 1 that would broadcast, an axis more or fewer."""
    if shape and draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        size = draw(st.sampled_from([1, shape[axis] + 1, shape[axis] - 1, 2 * shape[axis], 11]))
        return (*shape[:axis], size, *shape[axis + 1 :])
    new = draw(st.integers(1, 4))
    more = [(new, *shape), (*shape, new), (1, *shape), (*shape, 1), (2, 1, *shape), ()]
    return draw(st.sampled_from(more + ([shape[1:], shape[:-1]] if shape else [])))


def filled(name, shape):
    """An array that an argument of this name may be, of any shape."""
    if name in ("last", "first", "counted", "good"):
        return np.zeros(shape, bool)
    if name in ("states", "actions") or name == "value":
        return np.ones(shape, np.int32)
    numbers = np.linspace(0.1, 0.9, math.prod(shape)).reshape(shape)
    return np.asarray(numbers + (name == "reference"))


def result_shape(name, honest, given):
    """The shape of what comes out; nothing runs but the functions of NumPy."""
    if name.startswith("evaluation") and name != "evaluation.trials.episode_returns":
        return np.shape(call(name, honest, given))
    arrays = {
        x: jax.ShapeDtypeStruct(y.shape, jax.dtypes.canonicalize_dtype(y.dtype))
        for x, y in given.items()
        if isinstance(y, np.ndarray)
    }
    rest = {x: y for x, y in given.items() if x not in arrays}
    run = jax.eval_shape(lambda traced: call(name, honest, traced | rest), arrays)
    return jax.tree.leaves(run)[0].shape


TREES = {"params", "epsilon", "xi", "results"}  # of any structure, None too


def may_be_none(name, argument):
    """Whether the annotation of an argument allows None."""
    given = inspect.signature(found(name)).parameters.get(argument)
    return given is not None and "None" in str(given.annotation)


@st.composite
def cases_of_shapes(draw, name):
    """``(honest shapes, arguments, which of them is wrong)``; of "all", each by itself may be right."""
    words, _ = parsed(name)
    honest = draw(honest_shapes(words))
    wrong = draw(st.sampled_from([*words, "all"]))
    changed = dict(honest)
    if wrong == "all":
        extra = draw(st.sampled_from([(1,), (3,), (2, 3)]))
        changed = {x: (*extra, *shape) for x, shape in honest.items()}
    else:
        changed[wrong] = draw(wrong_shape(honest[wrong]))
    given = {x: filled(x, shape) for x, shape in changed.items()}
    if wrong != "all" and wrong not in TREES and draw(st.integers(0, 4)) == 0:
        kinds = ["0.5", [[0.5], [1.0, 2.0]]] + ([] if may_be_none(name, wrong) else [None])
        given[wrong] = draw(st.sampled_from(kinds))
    return honest, given, wrong


@pytest.mark.parametrize("name", ARRAYS)
def test_a_wrong_shape_is_refused_by_name(name):
    words, result = parsed(name)

    @hypothesis.settings(max_examples=CASES["shapes"], **RANDOM)
    @hypothesis.given(cases_of_shapes(name))
    def case(drawn):
        honest, given, wrong = drawn
        shapes = {x: y.shape for x, y in given.items() if isinstance(y, np.ndarray)}
        sizes = sizes_of(words, shapes) if len(shapes) == len(given) else None
        if sizes is not None:
            num_features = 2 * math.prod(sizes.get("...", ())) + 4  # of `linear_features`
            expected = shape_of(result, sizes | {"G": (num_features,)})
            assert result_shape(name, honest, given) == expected
            return
        with pytest.raises((ValueError, TypeError)) as raised:
            result_shape(name, honest, given)
        assert_names(raised.value, *(words if wrong == "all" else [wrong]))

    case()


SCALARS = [x for x in ARRAYS if re.search(r"\w\?|\.\?", ARRAYS[x])]


@pytest.mark.parametrize("name", SCALARS)
def test_a_number_is_an_array_of_it(name):
    words, _ = parsed(name)
    sizes = {axis: (3,) for word in words.values() for axis in tokens(word)}
    honest = {x: shape_of(word, sizes) for x, word in words.items()}
    (scalar,) = (x for x, word in words.items() if word.endswith("?") and word != "?")

    @hypothesis.settings(max_examples=CASES["scalars"], **RANDOM)
    @hypothesis.given(st.floats(0.0, 1.0, width=32))
    def case(number):
        given = {x: filled(x, () if words[x] == "?" else shape) for x, shape in honest.items()}
        given |= {"last": np.array([False, True, False])} if "last" in given else {}
        expected = call(name, honest, given | {scalar: np.full(honest[scalar], number)})
        for same in (number, np.asarray(number), jnp.asarray(number)):
            np.testing.assert_allclose(call(name, honest, given | {scalar: same}), expected, 1e-5)

    case()


# Settings


SIMPLE = (int, float, bool, str)
FAMILY = dataclasses.replace(
    tasks.make("tabular", num_states=2, num_actions=2, horizon=3),
    expert_action=lambda task, obs: jnp.zeros((), jnp.int32),
)
DISCRETE, BOX = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,))

VALUES = [
    *(
        None,
        True,
        False,
        "",
        "nope",
        "3",
        b"x",
        1.5,
        -0.5,
        math.nan,
        math.inf,
        -math.inf,
        1e30,
        -1e30,
    ),
    *(-1, 0, 1, 2, 3, -(2**40), 2**40, 2**70, 1j, [], (), (0,), (-1,), (1.5,), ("nope",), (None,)),
    *((2**40,), (math.nan,), ((1,),), [1, "2"], {}, {"nope": 1}, object(), np.ones(2)),
]


def alternatives(kind):
    """The types that a union is of."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def is_simple(kind):
    """Whether values of this type can be told from others."""
    return all(
        x in (*SIMPLE, type(None), Path) or typing.get_origin(x) in (tuple, Literal)
        for x in alternatives(kind)
    )


def is_wrong(value, kind):
    """Whether a value cannot be meant by one who reads the annotation, NaN included."""
    if typing.get_origin(kind) is Literal:
        return value not in typing.get_args(kind) if isinstance(value, str) else True
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        return not isinstance(value, tuple | list) or any(is_wrong(x, item) for x in value)
    if kind is bool or isinstance(value, bool):
        return not (kind is bool and isinstance(value, bool))
    if kind is float:
        return not isinstance(value, int | float) or math.isnan(value)
    return not isinstance(value, kind)


def try_setting(make, name, value, kind):
    """``make()`` ends in a result, unless the value is wrong, or in an error that names the setting."""
    try:
        make()
    except (ValueError, TypeError) as error:
        assert_names(error, name)
    else:
        assert not all(is_wrong(value, x) for x in alternatives(kind)), f"{name}={value!r} passed"


def hints(function):
    found = typing.get_type_hints(function)
    found.pop("return", None)
    return {name: kind for name, kind in found.items() if is_simple(kind)}


key = jax.random.key(0)
agent = references.random_agent(num_actions=2)
task = jax.tree.map(lambda x: x[0], tasks.sample_tasks(key, FAMILY, 1, split="train"))
two_tasks = jax.tree.map(lambda x: jnp.stack([x, x]), task)
acting = dict(learner=agent, env=FAMILY.env)
in_task = dict(key=key, meta=(), task=task)
in_tasks = dict(key=key, meta=(), tasks=two_tasks) | acting
sizes = dict(num_streams=2, num_steps=3)

SETTINGS = {
    "rollouts.lifetime.Setup": acting | sizes,
    "rollouts.lifetime.lifetime": in_task
    | dict(setup=rollouts.Setup(**acting, **sizes), num_updates=1),
    "evaluation.curves.adaptation_curve": in_tasks | sizes | dict(num_updates=1),
    "evaluation.trials.trials": in_tasks | dict(num_steps=2),
    "evaluation.agents.random_returns": dict(key=key, tasks=two_tasks, family=FAMILY),
    "evaluation.statistics.bootstrap_interval": dict(x=[0.0, 1.0]),
    "evaluation.statistics.interquartile_interval": dict(x=[[0.0, 1.0]], num_resamples=2),
    "evaluation.statistics.mean_interval": dict(x=[[0.0, 1.0]], num_resamples=2),
    "estimators.exact.random_mdp": dict(key=key, num_states=2, num_actions=2, discount=0.9),
    "estimators.exact.trajectories": dict(num_states=2, num_actions=2, horizon=2),
    "estimators.exact.batches": dict(num_outcomes=2, batch_size=2),
    "networks.graph_actor_critic.graph_actor_critic": dict(family=FAMILY),
    "networks.recurrent.feed_forward": dict(size=2),
    "networks.recurrent.gru": dict(size=2),
    "networks.recurrent.lstm": dict(size=2),
    "networks.recurrent.linear_recurrence": dict(size=2),
    "networks.recurrent.transformer": dict(size=8, context=2),
    "networks.recurrent.check": dict(memory="gru", memory_size=8, precision="full"),
    "networks.recurrent.make": dict(kind="gru", size=8, context=2),
    "meta_updates.gradients.tasks_at_once": dict(num_tasks=2, tasks_per_chunk=None),
    "networks.policies.action_features": dict(obs_shape=(2,), num_actions=2),
    "networks.heads.action_head": dict(num_features=2, action_space=BOX),
    "networks.policies.softmax_linear": dict(
        features=lambda obs: obs, num_features=2, action_space=DISCRETE
    ),
    "networks.policies.categorical_mlp": dict(obs_shape=(2,), action_space=DISCRETE),
    "networks.policies.gaussian_mlp": dict(obs_shape=(2,), action_space=BOX),
    "networks.policies.default_policy": dict(
        kind="mlp", obs_shape=(2,), action_space=DISCRETE, hidden_sizes=()
    ),
    "networks.values.value_mlp": dict(obs_shape=(2,)),
    "estimators.surrogates.taypo": dict(log_ratio=jnp.ones(2), first=jnp.zeros(2), order=1),
    "estimators.surrogates.vtrace": dict(
        log_ratio=jnp.ones(2), first=jnp.zeros(2), rho_bar=2.0, c_bar=2.0
    ),
    "references.bayes_optimal_bandit": dict(num_arms=2, num_pulls=2),
    "references.bayes_optimal_dependent_bandit": dict(kind="easy", num_pulls=2),
    "references.bayes_optimal_gridnavi": dict(num_episodes=1, num_steps=1),
    "references.random_agent": dict(num_actions=2),
    "references.greedy": dict(num_arms=2),
    "references.epsilon_greedy": dict(num_arms=2, epsilon=0.1),
    "references.ucb1": dict(num_arms=2, exploration=0.1),
    "references.thompson": dict(num_arms=2),
    "references.gittins": dict(num_arms=2, num_pulls=2, discount=0.5),
    "references.gittins_indices": dict(num_pulls=2, discount=0.5, resolution=20),
    "references.psrl": {},
    "references.posterior_sampling": dict(num_arms=2),
    "references.posterior_best_arm": dict(reward=jnp.zeros(2), pulls=jnp.zeros(2), num_nodes=4),
    "references.posterior_action": dict(goal=jnp.ones(4), cell=jnp.array(0), size=2),
    "references.dark_room_sampling": dict(size=2),
    "references.room_prior": dict(size=2),
    "references.told_key_to_door": dict(size=2),
    "tasks.dark_room.goals": dict(size=2, split="train"),
    "tasks.dark_room.pairs": dict(size=2, split="train"),
    "runs.presets.compared": dict(variant="maml", family="navigation"),
    "runs.presets.lasting": dict(experiment=experiments.Experiment(), meta_updates=3),
    "rollouts.rollout.rollout": in_task
    | acting
    | dict(agent=(), stream=rollouts.begin_stream(**in_task, **acting), num_steps=2),
    "tasks.describe": dict(name="navigation"),
    "tasks.family.sample_tasks": dict(key=key, family=FAMILY, num_tasks=2, split="train"),
    "tasks.family.content_hash": dict(family=FAMILY, split="train"),
    "tasks.transform.gymnax_environments.from_gymnax": dict(name="Catch-bsuite", horizon=3),
    "tasks.transform.actions.remapped_actions": dict(family=FAMILY, num_buttons=3),
    "tasks.transform.actions.rotated_actions": dict(family=tasks.make("navigation")),
    "tasks.transform.actions.sticky_actions": dict(family=FAMILY),
    "tasks.transform.observations.permuted_observations": dict(family=FAMILY),
    "tasks.transform.observations.masked_observations": dict(family=FAMILY, num_hidden=1),
    "tasks.transform.observations.projected_observations": dict(family=FAMILY, size=2),
    "tasks.transform.rewards.scaled_rewards": dict(family=FAMILY),
    "tasks.transform.rewards.delayed_rewards": dict(family=FAMILY),
    "learners.update_rules.lpg": {},
    "learners.update_rules.lpo": {},
    "learners.update_rules.rule_learner": dict(rule=update_rules.a2c(), family=FAMILY),
}
"""Functions of numbers and names, with arguments that are right. Those of keys and arrays may be told others."""


KNOWN_AS = {
    ("networks.policies.default_policy", "kind"): "policy",
    ("networks.recurrent.make", "kind"): "memory",
    ("tasks.describe", "name"): "family",
}
"""What a configuration calls an argument, and so does the error."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_refused_by_name(name):
    function = found(name)
    kinds = hints(function)

    @hypothesis.settings(max_examples=CASES["settings"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(kinds)), st.sampled_from(VALUES))
    def case(argument, value):
        settings = SETTINGS[name] | {argument: value}
        traced = "key" in settings and isinstance(value, int)
        make = functools.partial(function, **settings)
        # Traced, so that nothing runs.
        own = functools.partial(jax.eval_shape, make) if traced else make
        try_setting(own, KNOWN_AS.get((name, argument), argument), value, kinds[argument])

    case()


def family_with(name, **settings):
    """A family that is made quickly, or a skipped test where its package is not installed."""
    small = {"num_rulesets": 2, "horizon": 8, "sound_laws": 0}
    known = inspect.signature(tasks.FAMILIES[name]).parameters
    return made(name, **{x: small[x] for x in small.keys() & known.keys()} | settings)


@pytest.mark.parametrize("name", tasks.names())
def test_a_wrong_setting_of_a_family_is_refused_by_name(name):
    family_with(name)
    kinds = typing.get_type_hints(tasks.FAMILIES[name])
    kinds.pop("return")

    @hypothesis.settings(max_examples=CASES["settings"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(kinds)), st.sampled_from(VALUES))
    def case(setting, value):
        make = functools.partial(family_with, name, **{setting: value})
        try_setting(make, setting, value, kinds[setting] if is_simple(kinds[setting]) else object)

    case()


@pytest.mark.parametrize("part", ["Config", "Hyper"])
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_wrong_setting_of_an_algorithm_is_refused_by_name(name, part):
    module = ALGORITHMS[name]
    kind = getattr(module, part, None) or type(module.Hyper())
    kinds = {x: y for x, y in typing.get_type_hints(kind).items() if is_simple(y)}
    assert kinds.keys() >= set(getattr(kind, "_fields", ()))
    family = taken_by(name, FAMILY)

    @hypothesis.settings(max_examples=CASES["configurations"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(kinds)), st.sampled_from(VALUES))
    def case(setting, value):
        def make():
            parts = {"Config": module.Config(), "Hyper": module.Hyper()}
            parts[part] = kind(**{setting: value})
            getattr(module, name)(family, parts["Config"], parts["Hyper"])

        try_setting(make, setting, value, kinds[setting])

    case()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_object_of_another_kind_is_refused_by_name(name):
    """A name where a family is wanted, another's settings, a class, an optimiser that is made, a state for a meta."""
    module, other = ALGORITHMS[name], ALGORITHMS["es" if name != "es" else "rl2"]
    construct, family = getattr(module, name), taken_by(name, FAMILY)
    wrong = {
        "family": ["navigation", tasks.make, None, FAMILY.env],
        "config": [other.Config(), module.Config, {}, None],
        "hyper": [other.Hyper(), type(module.Hyper()), {}, None],
        "policy": ["mlp", networks.gaussian_mlp, nn.Dense(2)],
        "value": [networks.value_mlp, nn.Dense(1)],
        "q": [networks.value_mlp],
        "network": [nn.Dense(2)],
        "memory": ["gru", networks.recurrent.gru, nn.Dense(2)],
        "loss": ["ppo"],
        "optimizer": [optax.adam(1e-3), None, lambda: optax.adam(1e-3), lambda rate: None],
        "agent_optimizer": [optax.sgd(1e-3)],
    }
    for argument in wrong.keys() & inspect.signature(construct).parameters.keys():
        for value in wrong[argument]:
            with pytest.raises(TypeError) as raised:
                construct(**{"family": family, argument: value})
            assert_names(raised.value, argument)
    small = {"population_size": 2} if name == "es" else {}
    algorithm = construct(family, module.Config(hidden_sizes=(), **small))
    first = inspect.signature(type(module.Hyper())).parameters
    negative = next(x for x in first if x.endswith(("step_size", "learning_rate")))
    for hyper, told in (
        (other.Hyper(), "hyper"),
        (module.Hyper()._replace(**{negative: -1.0}), negative),
        (module.Hyper()._replace(**{negative: np.float32(-1.0)}), negative),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            jax.eval_shape(functools.partial(algorithm.init, hyper=hyper), key)
        assert_names(raised.value, told)
    state = jax.eval_shape(algorithm.init, key)
    for learns in (algorithm.learner.init, lambda key, meta: algorithm.learner.memory(meta)):
        with pytest.raises(TypeError, match=r"meta is .*State .*; its \.meta is one"):
            learns(key, state)


def test_a_name_that_stands_there_twice_is_refused():
    with pytest.raises(ValueError, match="learns=.* must name 'discount' once"):
        ALGORITHMS["meta_gradient"].Config(learns=("discount", "discount"))
    with pytest.raises(ValueError, match="decodes=.* must name 'rewards' once"):
        ALGORITHMS["varibad"].Config(decodes=("rewards", "rewards"))


def test_a_family_is_of_the_numbers_of_numpy_and_jax():
    sizes = dict(num_states=np.int64(2), num_actions=jnp.int32(2), horizon=np.asarray(3))
    assert tasks.make("tabular", **sizes).env == FAMILY.env


NEEDED = {
    "drawn_parameters": dict(ranges={}),
    "hidden": dict(entries=(0,)),
    "masked_observations": dict(num_hidden=1),
    "projected_observations": dict(size=1),
    "remapped_actions": dict(num_buttons=2),
}
"""Arguments that a transformation must be told beside the family."""


@pytest.mark.parametrize(
    "name", [x for x in transform.__all__ if inspect.isfunction(getattr(transform, x))]
)
def test_a_transformation_of_something_else_is_refused(name):
    function = getattr(transform, name)
    if "family" not in inspect.signature(function).parameters:
        return
    for value in ("navigation", FAMILY.env, None):
        with pytest.raises(TypeError, match=r"family is .*tasks\.make makes one from a name"):
            function(value, **NEEDED.get(name, {}))


PLANS = {"runs.training.Config": {}, "runs.experiments.Experiment": {}}


@pytest.mark.parametrize("name", PLANS)
def test_a_wrong_setting_of_a_plan_is_refused_by_name(name):
    kind = found(name)
    kinds = typing.get_type_hints(kind)

    @hypothesis.settings(max_examples=CASES["settings"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(kinds)), st.sampled_from(VALUES))
    def case(setting, value):
        make = functools.partial(kind, **{setting: value})
        try_setting(make, setting, value, kinds[setting] if is_simple(kinds[setting]) else object)

    case()


# Scripts

COMMANDS = {
    "accelerator": ["Main"],
    "algorithms": ["Main"],
    "beliefs": ["Beliefs"],
    "curricula": ["Mazes", "XLand", "Physics", "Overhead"],
    "endurance": ["Kill", "Long"],
    "estimators": ["Main"],
    "experts": ["Main"],
    "exploration": ["Buses", "Sparse"],
    "heads": ["Heads"],
    "families": ["Main"],
    "fields": ["Main"],
    "in_context": ["Bandits", "Rooms", "Distillation", "Regret"],
    "learned_objective": ["Train", "Memory"],
    "learned_rules": ["Compare", "Lifespans", "Catch", "Check"],
    "ledger": ["Show", "Write", "Add"],
    "meta_gradient": ["Chain", "Physics", "Memory"],
    "navigation": ["Main"],
    "off_policy": ["Main"],
    "off_policy_evaluation": ["Main"],
    "peers": ["Maml", "Ppo", "Rollout", "Grid"],
    "pretrain": ["Main"],
    "scaling": ["Scaling"],
    "second_order": ["Main"],
    "throughput": ["Rollout", "Updates", "Memory"],
    "time_to": ["Main"],
    "train": ["main"],
    "units": ["Main"],
    "xland": ["XLand"],
    "reproduce/bandits": ["Bandits"],
    "reproduce/dependent_bandits": ["DependentBandits"],
    "reproduce/gridnavi": ["GridNavi"],
    "reproduce/tabular": ["Tabular"],
}
"""The settings of each script, a class for each of its commands; `train` makes its own of what it is told."""

WORDS = [
    *("-1", "0", "1", "3", "-0.5", "0.5", "1e400", "nan", "inf", "-inf", "9" * 10, "9" * 20),
    *("", "nope", "mamal", "None", "True", "1,2", "1 2", "é", "--", "-", "maml", "navigation"),
]


class Accepted(Exception):
    """The options are valid; what follows is not tried."""


@functools.cache
def script(name):
    for folder in (SCRIPTS, SCRIPTS / "reproduce"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(
        f"script_{name.replace('/', '_')}", SCRIPTS / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def options(kind):
    """``{name of a setting: how it is written}`` of a command line; what is told by its place is not written."""
    return {
        field.name: "" if "Positional" in str(field.type) else f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(field.type)
    }


def is_sound(name, value, default):
    """Whether a script may go on with a value: no NaN, and no empty list where it is not the default."""
    if isinstance(value, tuple):
        return all(is_sound(name, x, x) for x in value) and (bool(value) or not default)
    return not (isinstance(value, float) and math.isnan(value))


def try_option(parse, name, option, words):
    """``parse(argv)`` ends in sound settings, or in a message that names the option or the word."""
    argv, said = [option, *words] if option else words, io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            settings = parse(argv)
    except Accepted:
        return
    except SystemExit as error:
        said.write(str(error.code))
    except (ValueError, TypeError, OSError) as error:
        said.write(str(error)[:2000])
    else:
        value = getattr(settings, name, None)
        default = {x.name: x.default for x in dataclasses.fields(settings)}.get(name)
        assert is_sound(name, value, default), f"{argv} passed as {value!r}"
        return
    text = re.sub(r"[\s│]+", " ", said.getvalue())
    assert "Traceback" not in text
    surplus = any(x in text if x else "Unrecognized" in text for x in words)
    assert option in text or name in text or surplus, text


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, command) for name in COMMANDS for command in COMMANDS[name] if command != "main"],
)
def test_a_wrong_option_is_refused_by_name(name, command):
    kind = getattr(script(name), command)
    known = options(kind)
    if not known:
        return
    needed = {
        "experts": ["ant_goal"],
        "pretrain": ["maml-navigation"],
        "ledger": ["runs/x", "--name", "x"] * (command == "Add"),
    }

    @hypothesis.settings(max_examples=CASES["scripts"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(known)), st.lists(st.sampled_from(WORDS), max_size=2))
    def case(option, words):
        before = needed.get(name, []) if known[option] else []
        try_option(lambda argv: tyro.cli(kind, args=before + argv), option, known[option], words)

    case()


@pytest.mark.slow
def test_a_wrong_option_of_the_main_job_is_refused_by_name(monkeypatch):
    train = script("train")

    def accept(*_, **__):
        raise Accepted

    monkeypatch.setattr(train.training, "enable_compilation_cache", accept)
    maml = ALGORITHMS["maml"]
    known = options(train.Evaluation) | options(train.training.Config) | options(maml.Config)
    known |= {x: f"--{x.replace('_', '-')}" for x in maml.Hyper._fields}
    known |= {x: f"--{x}" for x in ("preset", "algorithm", "family")} | {
        "horizon": "--task.horizon"
    }

    @hypothesis.settings(max_examples=4 * CASES["scripts"], **RANDOM)
    @hypothesis.given(st.sampled_from(sorted(known)), st.lists(st.sampled_from(WORDS), max_size=2))
    def case(option, words):
        try_option(train.main, option, known[option], words)

    case()


# What there is


def test_every_script_is_tried():
    paths = [*SCRIPTS.glob("*.py"), *SCRIPTS.glob("reproduce/*.py")]
    told = {
        path.relative_to(SCRIPTS).with_suffix("").as_posix()
        for path in paths
        if re.search("^if __name__", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert told == COMMANDS.keys()
    for name, commands in COMMANDS.items():
        source = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
        assert re.search(r'study\.(main|answered)\(|sys\.exit\(f"error: ', source), name
        assert all(re.search(rf"\b{command}\b", source) for command in commands)
