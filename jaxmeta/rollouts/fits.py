"""Whether a learner fits an environment, before anything compiles."""

import functools
from typing import Any

import jax
import numpy as np

from jaxmeta.rollouts.rollout import begin_stream
from jaxmeta.tasks import environments
from jaxmeta.types import Environment, Learner, Task


def check_fits(meta: Any, tasks: Task, *, learner: Learner, env: Environment) -> None:
    """Raises unless a learner with parameters ``meta`` can act in ``tasks [M]`` of an environment.

    The learner is born and acts once in the first task; that is traced and not run.

    Raises:
        ValueError: ``meta`` is of a population; the learner fails on the environment's observations, or its action is
            not the environment's.
    """
    shapes = {np.shape(x) for x in jax.tree.leaves(getattr(meta, "hyper", ()))}
    if shapes and () not in shapes:
        raise ValueError(
            f"meta is of a population, each number of meta.hyper has shape {min(shapes)}; choose a member: "
            f"jax.tree.map(lambda x: x[{', '.join('0' for _ in min(shapes))}], meta)"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    task = jax.eval_shape(lambda tasks: jax.tree.map(lambda x: x[0], tasks), tasks)
    begun = functools.partial(begin_stream, learner=learner, env=env)
    try:
        stream = jax.eval_shape(begun, key, meta, task)
        agent = jax.eval_shape(learner.init, key, meta)
        action, _, _ = jax.eval_shape(learner.act, key, meta, agent, stream.memory, stream.timestep)
    except Exception as error:
        if isinstance(error, environments.InvalidEnvironment) or str(error).startswith("meta is "):
            raise  # it says what is wrong
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"learner does not fit {environments.name_of(env)}, whose observations have shape {environments.observation_space(env).shape}: "
            f"it was made for another family, or meta is of another learner ({type(error).__name__}: {first_line})"
        ) from error
    what = f"learner does not fit {environments.name_of(env)}: its action"
    try:
        environments.check_action(what, action, environments.action_space(env))
    except environments.InvalidEnvironment as error:
        raise ValueError(str(error)) from error
