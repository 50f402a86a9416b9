"""How well is a policy's value known after a few steps on another policy's experience?

In random finite MDPs with structure in common, ten trajectories of a behaviour μ are given, and the value
V^π of a target π is asked for. Three beginnings of the same network take the same steps on the same
importance-corrected targets: one that was meta-learned for that, one trained without adaptation on all
tasks (their mean), and a random one.

    python benchmarks/off_policy_evaluation.py
    python benchmarks/off_policy_evaluation.py --family tabular     # MDPs with nothing in common

An error is the mean over states and held-out MDPs of (V_w(s) - V^π(s))², V^π being exact. The step size and λ
of the two controls are the best of a grid on training tasks, for each number of steps anew; the
meta-learned value has learned its step sizes and is used as it is, with one λ.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import study

from jaxmeta import evaluation, plotting, tasks
from jaxmeta.algorithms.meta_value import Config, Hyper, MetaValue, meta_value, meta_value_parts
from jaxmeta.learners.gradient import Meta
from jaxmeta.tasks import TaskFamily
from jaxmeta.tasks.tabular import state_values
from jaxmeta.types import Task, TimeStep

STEP_SIZES = tuple(float(x) for x in np.geomspace(0.01, 10.0, 13))
LAMBDAS = (0.0, 0.5, 0.9, 1.0)
Several = Annotated[int, study.at_least(2)]


class Main(study.Study):
    """Off-policy evaluation in random MDPs."""

    family: Literal["latent_tabular", "tabular"] = "latent_tabular"
    """MDPs with structure in common, or without."""
    distances: Annotated[study.Numbers, study.within(0.0, 10.0)] = (0.2, 1.0)
    """Standard deviations of the difference of π's and μ's parameters."""
    updates: tuple[int, ...] = (1, 3, 10)  # Numbers of steps to report.
    rho_bar: Annotated[float, study.within(0, math.inf)] = 3.0
    """Bound of V-trace on the ratio of a TD error; a few tasks diverge without one."""
    meta_updates: Several = 3000
    """Meta-updates, of 20 tasks each; as many without adaptation for the mean task."""
    num_tasks: Several = 1000  # Held-out MDPs.
    num_tuning: Several = 500  # Training MDPs on which the controls' step sizes and λ are chosen.
    seed: int = 0  # Of training and of the random beginning.


def trained(main: Main, family: TaskFamily, config: Config, hyper: Hyper) -> tuple[Meta, float]:
    """The parameters that `meta_value` has learned, and the seconds without compilation.

    The outer step size falls to zero, along half a cosine: importance ratios make for noisy gradients.
    """

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(learning_rate, main.meta_updates))

    algorithm = meta_value(family, config, hyper, optimizer=optimizer)
    run = study.one(algorithm, main.seed)
    train, _ = study.trainer(run, algorithm, family, num_tasks=20, chunk=main.meta_updates)
    after = train(run, main.meta_updates)
    return after.meta, after.seconds


def exact_values(parts: MetaValue, agent: Any, task: Task, discount: jax.Array) -> jax.Array:
    """V^π of the agent's target policy at every state, ``[S]``."""
    every = jnp.eye(task.reward.shape[0])

    def probabilities(obs: jax.Array) -> jax.Array:
        looking = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
        distribution, _ = parts.policy.step(agent.target, parts.policy.memory(), looking)
        return jnp.exp(distribution.log_probs())

    return state_values(task, jax.vmap(probabilities)(every), discount)


def errors(
    key: jax.Array, meta: Meta, drawn: Task, *, parts: MetaValue, num_updates: int
) -> tuple[jax.Array, jax.Array]:
    """Squared errors after 0 ... K steps ``[M, K + 1]``, and mean |log ρ| ``[M]``."""

    def of_task(key_and_task: tuple) -> tuple[jax.Array, jax.Array]:
        key, task = key_and_task
        birth_key, data_key = jax.random.split(key)
        agent = parts.learner.init(birth_key, meta)
        data = parts.experience(data_key, meta, task, agent)
        weights = parts.adapt(meta, agent, data, num_updates=num_updates)
        v = exact_values(parts, agent, task, meta.hyper.discount)
        every = jnp.eye(v.shape[0])
        error = jax.vmap(lambda w: jnp.mean((parts.predict(w, every) - v) ** 2))(weights)
        return error, jnp.mean(jnp.abs(parts.log_ratio(agent, data)))

    keys = jax.random.split(key, drawn.reward.shape[0])
    return jax.lax.map(of_task, (keys, drawn), batch_size=50)


Measure = Callable[[jax.Array, Meta, Task], tuple[jax.Array, jax.Array]]


def best_control(main: Main, measure: Measure, meta: Meta, family: TaskFamily) -> dict[int, Meta]:
    """``meta`` with the best step size and λ for each number of steps, chosen on training tasks."""
    task_key, key = jax.random.split(jax.random.key(main.seed + 100))
    drawn = tasks.sample_tasks(task_key, family, main.num_tuning, split="train")
    candidates = [
        study.with_hyper(meta, step_size=jnp.asarray(x, float), trace_lambda=jnp.asarray(y, float))
        for x, y in itertools.product(STEP_SIZES, LAMBDAS)
    ]
    found = np.stack([np.asarray(measure(key, x, drawn)[0], float).mean(0) for x in candidates])
    found = np.where(np.isfinite(found), found, np.inf)
    return {k: candidates[int(found[:, k].argmin())] for k in main.updates}


def compare(main: Main, distance: float) -> list[dict[str, Any]]:
    """A row a beginning: means and intervals over tasks, and the meta-learned error's share."""
    family = tasks.make(main.family)
    how = dict(rho_bar=main.rho_bar, policy="softmax_linear")
    config = Config(num_updates=max(main.updates), hidden_sizes=(32,), **how)
    hyper = Hyper(policy_scale=0.5, policy_distance=distance, learning_rate=1e-2)
    # The controls differ in nothing but where they begin and in their tuning.
    fixed = dataclasses.replace(config, step_sizes="fixed")
    mean_task = dataclasses.replace(fixed, num_updates=0)

    def measure(config: Config) -> Measure:
        parts = meta_value_parts(family, config)
        return jax.jit(partial(errors, parts=parts, num_updates=max(main.updates)))

    learned, seconds = trained(main, family, config, hyper)
    study.say(f"distance {distance}: meta-learned in {seconds:.0f} s")
    mean, mean_seconds = trained(main, family, mean_task, hyper)
    random = meta_value(family, fixed, hyper).init(jax.random.key(main.seed + 1)).meta

    task_key, key = jax.random.split(jax.random.key(main.seed + 200))
    drawn = tasks.sample_tasks(task_key, family, main.num_tasks, split="test")
    rows: list[dict[str, Any]] = []
    best: dict[int, np.ndarray] = {}
    controls = measure(fixed)
    for name, of_updates, measured, spent in (
        ("meta-learned", {k: learned for k in main.updates}, measure(config), seconds),
        ("mean task", best_control(main, controls, mean, family), controls, mean_seconds),
        ("random", best_control(main, controls, random, family), controls, None),
    ):
        found = {k: measured(key, meta, drawn) for k, meta in of_updates.items()}
        curves = {k: np.asarray(x[0], np.float64) for k, x in found.items()}
        best = best or curves
        row = {
            "log_ratio": float(np.mean(found[main.updates[0]][1])),
            "beginning": name,
            "before": float(curves[max(main.updates)][:, 0].mean()),
        }
        for k, x in curves.items():
            after, (low, high) = x[:, k].mean(), evaluation.bootstrap_interval(x[:, k])
            row |= {f"after_{k}": float(after), f"after_{k}_low": float(low)}
            share = float(best[k][:, k].mean() / after)
            row |= {f"after_{k}_high": float(high), f"share_{k}": share}
        hypers = {k: None if name == "meta-learned" else x.hyper for k, x in of_updates.items()}
        tuned = {k: x and [float(x.step_size), float(x.trace_lambda)] for k, x in hypers.items()}
        rows.append(row | {"tuned": tuned, "training_seconds": spent})
    return rows


def shown(row: dict[str, Any], updates: tuple[int, ...]) -> dict[str, str]:
    """A row of the table."""
    cells = {
        "mean abs log ρ": f"{row['log_ratio']:.2f}",
        "beginning": row["beginning"],
        "0 steps": f"{row['before']:.2f}",
    }
    for k in updates:
        numbers = (row[f"after_{k}{end}"] for end in ("", "_low", "_high"))
        cells[f"{k} step{'s' * (k > 1)} (95 %)"] = study.with_interval(*numbers)
    shares = " / ".join(f"{row[f'share_{k}']:.2f}" for k in updates)
    learned = row["beginning"] == "meta-learned"
    return cells | {"meta-learned's share of it": "" if learned else shares}


def run(main: Main) -> None:
    summary = [row for distance in main.distances for row in compare(main, distance)]
    flat = [{k: v for k, v in row.items() if k != "tuned"} for row in summary]
    study.leave(main, [shown(row, main.updates) for row in summary], csv=flat, rows=summary)
    panels: dict[str, dict[str, tuple[list, list]]] = {}
    for row in summary:
        panel = panels.setdefault(f"squared error, mean |log ρ| = {row['log_ratio']:.2f}", {})
        panel[row["beginning"]] = (list(main.updates), [row[f"after_{k}"] for k in main.updates])
    path = main.output / "off_policy_evaluation.png"
    plotting.lines(path, panels, x_label="steps on ten trajectories of μ", logarithmic=True)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
