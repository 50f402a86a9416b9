import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import checks, evaluation, rollouts, tasks
from jaxmeta.algorithms import maml, rl2
from jaxmeta.estimators import exact
from jaxmeta.runs import training


def test_choice_names_the_nearest():
    checks.choice("family", "cartpole", ["cartpole", "acrobot"])
    with pytest.raises(ValueError, match=r"family='cartpol' is unknown: did you mean 'cartpole'\?"):
        checks.choice("family", "cartpol", ["cartpole", "acrobot"])
    with pytest.raises(ValueError, match="known are 'acrobot', 'cartpole'"):
        checks.choice("family", "zzz", ["cartpole", "acrobot"])


def test_choice_takes_any_value_and_numbers():
    checks.choice("episodes", 10, {10: None, 25: None})
    for value in (11, "10", None, [], np.ones(2)):
        with pytest.raises(ValueError, match="episodes=.* is unknown"):
            checks.choice("episodes", value, {10: None, 25: None})


def test_at_least():
    checks.at_least("n", 1, 1)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        checks.at_least("n", 0, 1)
    for value in (1.5, True, "3", None):
        with pytest.raises(TypeError, match="must be an integer of at least 1"):
            checks.at_least("n", value, 1)
    with pytest.raises(ValueError, match="n=2147483648 must be at most 2147483647"):
        checks.at_least("n", 2**31, 1)
    checks.at_least("seed", 2**31, 0, 2**32 - 1)


def test_each_at_least():
    checks.each_at_least("sizes", (), 1)
    checks.each_at_least("sizes", [1, 2], 1)
    with pytest.raises(ValueError, match="sizes=0 must be at least 1"):
        checks.each_at_least("sizes", (1, 0), 1)
    for value in (None, 3, "12", {1: 2}):
        with pytest.raises(TypeError, match="sizes=.* must be a tuple of integers of at least 1"):
            checks.each_at_least("sizes", value, 1)


def test_some():
    checks.some("names", ("a",))
    for none in ((), [], {}):
        with pytest.raises(ValueError, match="names=.* must hold at least one"):
            checks.some("names", none)


def test_shapes_bind_axes_by_letter():
    checks.shapes("NTF NT", features=jnp.ones((3, 4, 2)), targets=np.ones((3, 4)))
    checks.shapes("T", a=jnp.ones(4), b=jnp.ones(4), c=np.ones(4))
    for wrong, told in (
        ((3, 5), "T = 4 as in features"),
        ((4, 3), "N = 3 as in features"),
        ((3, 1), "T = 4 as in features"),
        ((3, 4, 1), r"\(3, 4, 1\); it must be \[N, T\]$"),
        ((), "must be"),
    ):
        with pytest.raises(ValueError, match=f"targets has shape .*{told}"):
            checks.shapes("NTF NT", features=jnp.ones((3, 4, 2)), targets=np.ones(wrong))


def test_shapes_with_any_axes_with_sizes_and_with_scalars():
    for shape in ((), (5,), (5, 6)):
        checks.shapes("...A ... ?", logits=np.ones((*shape, 2)), value=np.ones(shape), scale=0.5)
    with pytest.raises(ValueError, match=r"value has shape \(6,\); .*\(5,\) as in logits"):
        checks.shapes("...A ...", logits=np.ones((5, 2)), value=np.ones(6))
    with pytest.raises(ValueError, match=r"logits has shape \(\); it must be \[..., A\]"):
        checks.shapes("...A", logits=np.ones(()))
    checks.shapes("T... T", obs=np.ones((4, 2, 3)), step=np.ones(4))
    checks.shapes("2", pair=np.ones(2))
    with pytest.raises(ValueError, match=r"pair has shape \(3,\); it must be \[2\]"):
        checks.shapes("2", pair=np.ones(3))
    for lambda_ in (0.9, 1, jnp.asarray(0.9), np.float32(0.9), np.ones(4)):
        checks.shapes("T T?", delta=np.ones(4), lambda_=lambda_)
    with pytest.raises(ValueError, match=r"lambda_ has shape \(1,\); it must be \[T\] or a scalar"):
        checks.shapes("T T?", delta=np.ones(4), lambda_=np.ones(1))


def test_shapes_take_arrays_alone_where_arrays_are_wanted():
    for value in (0.5, [1.0, 2.0], "ab", None):
        with pytest.raises(TypeError, match=r"x is .*; it must be \[T\]"):
            checks.shapes("T", x=value)
    for value in ("0.5", None, True):
        with pytest.raises(TypeError, match=r"x is .*; it must be a scalar"):
            checks.shapes("?", x=value)


def test_shapes_are_those_that_a_transformation_leaves():
    def f(x):
        checks.shapes("T", x=x)
        return jnp.sum(x**2)

    jax.jit(jax.vmap(jax.grad(f)))(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\)"):
        jax.jit(f)(jnp.ones((3, 4)))


def test_numbers_are_float64_of_the_shapes():
    x, y = checks.numbers("MK M", x=[[1, 2]], y=jnp.ones(1))
    assert x.dtype == y.dtype == np.float64
    assert (x.shape, y.shape) == ((1, 2), (1,))
    with pytest.raises(ValueError, match="y has shape"):
        checks.numbers("MK M", x=[[1, 2]], y=[1, 2])
    for wrong in ("0.5", None, [[1], [2, 3]], ["a"]):
        with pytest.raises(TypeError, match="x is .*; it must be an array of numbers"):
            checks.numbers("M", x=wrong)


def test_same_structure():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    checks.same_structure(params=params, epsilon={"w": np.ones((2, 3)), "b": np.ones(3)})
    with pytest.raises(
        ValueError, match=r"epsilon\['b'\] has shape \(1,\); in params it is \(3,\)"
    ):
        checks.same_structure(params=params, epsilon=params | {"b": jnp.ones(1)})
    with pytest.raises(
        ValueError, match=r"epsilon has the structure dict\(w\); .* of params, dict\(w, b\)"
    ):
        checks.same_structure(params=params, epsilon={"w": params["w"]})


class Pair(NamedTuple):
    first: object
    second: object


def test_structures_are_told_by_the_names_of_types_and_fields():
    one = Pair(jnp.ones(2), {"a": jnp.ones(1), "b": (jnp.ones(1), None)})
    there = "tests.test_checks.Pair(first, second: dict(a, b: tuple(0, None)))"
    assert checks.structure(one) == there
    assert checks.structure(jnp.ones(2)) == "an array"
    message = re.escape(
        f"tasks has the structure dict(first); the family has {there}: second is missing"
    )
    with pytest.raises(ValueError, match=message):
        checks.like("tasks", {"first": jnp.ones(2)}, one, "the family")
    task, other = (tasks.make(name).env.default_params for name in ("navigation", "cartpole"))
    message = (
        r"cartpole.EnvParams\(max_steps_in_episode, gravity, .*; the family has "
        r"tasks.navigation.NavigationParams\(goal\): goal is missing"
    )
    with pytest.raises(ValueError, match=message):
        checks.batch("tasks", other, task, "the family")
    # Of two that have the same names, what jax says differs.
    static = jax.tree_util.Partial(len, 1), jax.tree_util.Partial(max, 1)
    assert len(set(checks.structures(*static))) == 2


def test_a_random_key_is_one_key():
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        checks.random_key("key", key)
        jax.jit(lambda key: checks.random_key("key", key))(key)
    checks.random_key("key", jax.random.key(0, impl="rbg"))
    for wrong, message in (
        (3, r"key is int '3'; it must be a random key: use jax.random.key\(3\)"),
        (None, r"key is None 'None'; it must be a random key: use jax.random.key\(0\)"),
        (jnp.zeros(2), "key is an array of float32"),
        (jnp.int32(0), "key is an array of int32"),
        (jax.random.split(jax.random.key(0)), r"random keys of shape \(2,\); it must be one"),
    ):
        with pytest.raises(TypeError, match=message):
            checks.random_key("key", wrong)


def test_public_functions_take_random_keys():
    family = tasks.make("navigation", horizon=3)
    algorithm = maml.maml(family, maml.Config(num_streams=2, hidden_sizes=(4,)))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    for call in (
        lambda: algorithm.init(0),
        lambda: algorithm.step(0, state, None),
        lambda: algorithm.learner.init(0, state.meta),
        lambda: tasks.sample_tasks(0, family, 2, split="train"),
        lambda: evaluation.adaptation_returns(
            0,
            state.meta,
            None,
            learner=algorithm.learner,
            env=family.env,
            num_streams=1,
            num_updates=0,
            num_steps=3,
        ),
        lambda: evaluation.random_returns(0, None, family=family),
        lambda: exact.random_mdp(0, num_states=2, num_actions=2, discount=0.9),
        lambda: training.begin(0, algorithm=algorithm),
        lambda: rollouts.begin_stream(0, None, None, learner=algorithm.learner, env=family.env),
    ):
        with pytest.raises(TypeError, match=r"it must be a random key: use jax.random.key\(0\)"):
            call()


def test_an_argument_that_a_constructor_lacks_is_said_where_it_belongs():
    family = tasks.make("navigation", horizon=3)
    for call, message in (
        (
            lambda: rl2.rl2(family, encoder=1),
            "no argument encoder=; give it network=networks.recurrent_actor",
        ),
        (lambda: maml.maml(family, encoder=1), "give it policy=networks.encoded_policy"),
        (
            lambda: maml.maml(family, num_streams=1),
            r"setting: maml\(family, config=Config\(num_streams=...\)\)",
        ),
        (
            lambda: maml.maml(family, step_size=1),
            r"setting: maml\(family, hyper=Hyper\(step_size=...\)\)",
        ),
        (
            lambda: maml.maml(family, polcy=1),
            "no argument polcy=; it has family, config, hyper, policy, optimizer",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 1
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    steps: int | None = None
    sizes: tuple[int, ...] = (1,)
    rates: tuple[float, ...] = ()
    path: Path = Path()
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        checks.fields(self)


def test_fields_are_of_their_types():
    Settings()
    Settings(2, 0.5, True, "b", 3, [1, 2], (1, 0.5), Path("x"), {"y": 1})
    wrong = {
        "count": (1.5, "1", None, True),
        "rate": ("1", None, False, 1j),
        "flag": (1, None, "yes"),
        "steps": ("1", 1.5, True),
        "sizes": (None, 3, "12", (1.5,), ("1",), (None,)),
        "rates": (0.5, ("a",)),
        "path": ("x", None),
        "more": (None, [1]),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(TypeError, match=f"{name}=.* must be of type"):
                Settings(**{name: value})
    with pytest.raises(TypeError, match=r"steps='1' must be of type int \| None"):
        Settings(steps="1")
    with pytest.raises(ValueError, match="kind='c' is unknown: .*'a', 'b'"):
        Settings(kind="c")
    for name, value in (("rate", float("nan")), ("rates", (1.0, float("nan")))):
        with pytest.raises(ValueError, match=f"{name}=.* must not be NaN"):
            Settings(**{name: value})


def test_between():
    checks.between("x", 0, 0, 1)
    checks.between("x", 0.5, 0, 1)
    for value in (1.5, float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            checks.between("x", value, 0, 1)
    for value in ("a", None, True):
        with pytest.raises(TypeError, match="must be a number between 0 and 1"):
            checks.between("x", value, 0, 1)


def test_core():
    checks.core("core", None)
    with pytest.raises(ValueError, match="core=4096 must be .*None"):
        checks.core("core", 4096)
    if hasattr(os, "sched_getaffinity"):
        for there in os.sched_getaffinity(0):
            checks.core("core", there)


def test_hyper_knows_shared_fields_and_is_told_the_others():
    class Hyper(NamedTuple):
        discount: float = 0.99
        own: float = 1.0

    checks.hyper(Hyper(), own=(0, 2))
    with pytest.raises(ValueError, match="discount=1.5 must lie between 0 and 1"):
        checks.hyper(Hyper(discount=1.5), own=(0, 2))
    with pytest.raises(ValueError, match="own=3 must lie between 0 and 2"):
        checks.hyper(Hyper(own=3), own=(0, 2))
    for value in (jnp.asarray(1.5), np.float32(1.5)):
        with pytest.raises(ValueError, match="discount=1.5 must lie between 0 and 1"):
            checks.hyper(Hyper(discount=value), own=(0, 2))
    jax.eval_shape(  # traced: the caller's
        lambda x: checks.hyper(Hyper(discount=x), own=(0, 2)), jnp.asarray(1.5)
    )
    for wrong in ("0.9", None, True):
        with pytest.raises(TypeError, match="discount=.* must be a number between 0 and 1"):
            checks.hyper(Hyper(discount=wrong), own=(0, 2))
    with pytest.raises(ValueError, match=r"discount has shape \(2,\); it must be a scalar"):
        checks.hyper(Hyper(discount=jnp.ones(2)), own=(0, 2))


def test_a_missing_package_is_named_with_its_extra():
    error = checks.missing("brax", "robots")
    assert isinstance(error, ImportError)
    assert str(error) == 'brax is missing: pip install "jaxmeta[robots]"'


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    checks.folder("output", tmp_path)
    checks.folder("output", tmp_path / "new" / "newer")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"output='.*file.*': .*file is a file; name"):
            checks.folder("output", path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(
            NotADirectoryError, match="link is a link to a place that does not exist"
        ):
            checks.folder("output", path)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)  # root may do everything
    with pytest.raises(PermissionError, match=r"output='.*new': .* may not be written to"):
        checks.folder("output", tmp_path / "new")


NUMBERS = [np.int64(3), np.int8(3), np.asarray(3), jnp.asarray(3), jnp.int32(3)]


@pytest.mark.parametrize("three", NUMBERS, ids=lambda x: type(x).__name__)
def test_scalars_of_numpy_and_jax_are_numbers(three):
    for found in (checks.at_least("n", three, 1), checks.field("n", three, int)):
        assert found == 3
        assert type(found) is int
    assert checks.each_at_least("n", [three, 4], 1) == (3, 4)
    assert checks.between("x", three, 0, 3) == 3
    assert checks.between("x", np.float32(0.5), 0, 1) == 0.5
    checks.choice("n", three, (3, 4))
    with pytest.raises(ValueError, match="n=3 must be at least 4"):
        checks.at_least("n", three, 4)
    for value in (np.True_, np.float32(3), jnp.ones(1, int)):
        with pytest.raises(TypeError, match="must be an integer of at least 1"):
            checks.at_least("n", value, 1)


def test_equal_settings_are_equal_and_can_be_hashed():
    plain = Settings(2, 0.5, True, "b", 3, (1, 2))
    same = Settings(np.int64(2), np.float32(0.5), np.True_, "b", jnp.int32(3), [np.int8(1), 2])
    assert plain == same
    assert checks.field("sizes", [1, 2], tuple[int, ...]) == (1, 2)
    assert [type(x) for x in dataclasses.astuple(same)[:5]] == [int, float, bool, str, int]


def test_ignored_settings_keep_their_defaults():
    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 3
        names: tuple = ()

    class Hyper(NamedTuple):
        clip: float = 0.2

    checks.ignored(Config(), ["size", "names"], "here")
    checks.ignored(Hyper(jnp.asarray(0.3)), ["clip"], "here")  # may be traced
    checks.ignored(Config(size=4), [], "here")
    for settings, name, value, default in (
        (Config(size=4), "size", 4, 3),
        (Config(names=(1,)), "names", (1,), ()),
        (Hyper(0.3), "clip", 0.3, 0.2),
    ):
        said = f"{name}={value} has no effect with x=1; leave it at its default {default}"
        with pytest.raises(ValueError, match=re.escape(said)):
            checks.ignored(settings, [name], "with x=1")


def test_distinct():
    checks.distinct("names", ("a", "b"))
    with pytest.raises(ValueError, match=r"names=\('a', 'b', 'a'\) must name 'a' once"):
        checks.distinct("names", ("a", "b", "a"))


class Wanted(NamedTuple):
    x: int = 1


class Holder(NamedTuple):
    wanted: Wanted = Wanted()


def test_instances_of_another_class_are_refused_with_where_the_right_one_is():
    checks.instance("value", Wanted(), Wanted)
    checks.instance("value", None, Wanted | None)
    for value, told in (
        ("navigation", r"is str 'navigation'; it must be tests.test_checks.Wanted"),
        (None, r"is None 'None'; it must be"),
        (Wanted, r"is type .*: call it, Wanted\(\)"),
        (Holder(), r"is tests.test_checks.Holder .*; its .wanted is one"),
    ):
        with pytest.raises(TypeError, match=f"value {told}"):
            checks.instance("value", value, Wanted)


def test_a_function_is_not_looked_for_in_what_was_given():
    """An optimiser's ``init`` is a function, and not the one that makes an optimiser."""
    makes = Callable[[float], optax.GradientTransformation]
    with pytest.raises(TypeError, match="must be a function: optax.adam, say, and not optax.adam"):
        checks.instance("optimizer", optax.adam(1e-3), makes)


def test_arguments_are_of_the_types_that_are_annotated():
    @checks.arguments
    def function(
        first: Wanted, *names: str, second: Wanted | None = None, call: Callable | None = None
    ):
        """Words."""
        return first

    assert function(Wanted(), "a", second=None, call=len) == Wanted()
    assert function.__doc__ == "Words."
    for given, told in (
        (dict(first=3), "first is int '3'; it must be tests.test_checks.Wanted"),
        (dict(first=Wanted(), second=3), "second is int '3'; it must be .*Wanted or None"),
        (dict(first=Wanted(), call=3), "call is int '3'; it must be a function or None"),
    ):
        with pytest.raises(TypeError, match=told):
            function(**given)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        function()
