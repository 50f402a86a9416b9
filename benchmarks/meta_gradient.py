"""What do meta-gradients of a lifetime learn, and what do they cost?

    python benchmarks/meta_gradient.py chain --output runs/meta-gradient-chain
    python benchmarks/meta_gradient.py physics --output runs/meta-gradient-physics
    python benchmarks/meta_gradient.py memory --output runs/meta-gradient-memory

`chain`: the discount on bsuite's discounting chain, whose better reward comes late. The meta-objective has the
agent's own value function, or one of its own discount. Values are learned before anything else, for the
first policy, and from then on with it.

`physics`: γ and λ learned online on cart-poles of different physics, beside a grid of fixed ones: each pair on
as many environment steps, and all pairs together, as who has to find the best of them must pay. All run at
once, mapped over.

`memory`: what a meta-update reserves for intermediate values, through lifetimes of different lengths: a
derivative that reaches through one update at a time, and one through the whole lifetime.

Each leaves results.json, table.md and a figure in the output folder.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, plotting, tasks
from jaxmeta.algorithms.meta_gradient import Config, meta_gradient
from jaxmeta.learners.actor_critic import Hyper
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.runs import reports, training
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True)
class Chain:
    """The discount on the discounting chain of Bonnet et al. 2022."""

    output: Path = Path("runs/meta-gradient-chain")
    """Folder for the results; made anew."""
    variants: tuple[str, ...] = ("fixed", "plain", "BMG", "plain, outer value", "BMG, outer value")
    """What to run."""
    meta_updates: int = 5000
    """Meta-updates, two updates of the agent each."""
    num_streams: int = 128
    """Episodes in an update."""
    value_updates: int = 400
    """Updates of values alone before."""
    num_seeds: int = 1
    """Runs of each."""

    def __post_init__(self) -> None:
        for name in ("meta_updates", "num_streams", "value_updates", "num_seeds"):
            checks.at_least(name, getattr(self, name), 1)
        checks.some("variants", self.variants)
        for name in self.variants:
            checks.choice("variants", name, VARIANTS)


@dataclasses.dataclass(frozen=True)
class Physics:
    """γ and λ on cart-poles: learned, and all pairs of fixed ones."""

    output: Path = Path("runs/meta-gradient-physics")
    """Folder for the results; made anew."""
    discounts: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98, 0.995)
    """Fixed γ; the learned one starts at the middle one."""
    lambdas: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)
    """Fixed λ; the learned one starts at the middle one."""
    meta_updates: int = 1500
    """Meta-updates, two updates of each agent each."""
    num_agents: int = 64
    """Lives, each in a cart-pole of its own; η is shared. With few of them its gradient is mostly noise."""
    num_streams: int = 8
    """Parallel episodes of each."""
    num_steps: int = 32
    """Steps of each between two updates."""
    num_seeds: int = 3
    """Runs of each setting."""
    seed: int = 0
    """The first of their seeds."""

    def __post_init__(self) -> None:
        for name in ("meta_updates", "num_agents", "num_streams", "num_steps", "num_seeds"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("seed", self.seed, 0, 2**32 - 1)
        for name in ("discounts", "lambdas"):
            checks.some(name, getattr(self, name))
            for value in getattr(self, name):
                checks.between(name, value, 0, 1)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a meta-update against the length of a lifetime."""

    output: Path = Path("runs/meta-gradient-memory")
    """Folder for the results; made anew."""
    lifetimes: tuple[int, ...] = (10, 100, 1000)
    """Updates of an agent in its life; even."""
    num_agents: int = 4
    """Lives."""
    num_streams: int = 8
    """Parallel episodes of each."""
    num_steps: int = 16
    """Steps of each between two updates."""

    def __post_init__(self) -> None:
        for name in ("num_agents", "num_streams", "num_steps"):
            checks.at_least(name, getattr(self, name), 1)
        checks.some("lifetimes", self.lifetimes)
        for value in self.lifetimes:
            checks.at_least("lifetimes", value, 2)
            if value % 2:
                raise ValueError(f"lifetimes={value} must be even: a meta-update is two updates")


Outcome = tuple[list[dict[str, str]], Any, Callable[[Path], None]]
"""Rows of the table, all that was measured, and the figure."""

VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": dict(learns=()),
    "plain": {},
    "BMG": dict(outer="bootstrap"),
    "plain, outer value": dict(outer_value=True),
    "BMG, outer value": dict(outer="bootstrap", outer_value=True),
}


LEARNED: dict[str, dict[str, Any]] = {
    "learned": dict(outer_value=True, leave_one_out=True),
    "learned, no outer value": dict(leave_one_out=True),
    "learned, no baseline of derivatives": dict(outer_value=True),
}


def table_of_values(num_chains: int, horizon: int) -> Value:
    """A number for each state of the chain, zero at first."""

    def apply(params: jax.Array, obs: jax.Array) -> jax.Array:
        chain, time = obs[..., 0].astype(jnp.int32), jnp.round(obs[..., 1] * horizon)
        return params[chain + 1, time.astype(jnp.int32)]

    return Value(lambda key: jnp.zeros((num_chains + 1, horizon + 1)), apply)


def chain_algorithm(main: Chain, family: TaskFamily, settings: dict, hyper: Hyper) -> MetaAlgorithm:
    config = Config(
        **dict(learns=("discount",)) | settings,
        num_agents=1,
        num_streams=main.num_streams,
        num_steps=family.horizon,
        value_targets="monte_carlo",
        policy="categorical",
        hidden_sizes=(),
        rematerialize=False,
        unroll=5,
    )
    value = table_of_values(family.action_space.n, family.horizon)
    return meta_gradient(family, config, hyper, value=value)


def run_chain(main: Chain) -> Outcome:
    family = tasks.make("discounting_chain", best_chain=3)
    hyper = Hyper(
        discount=0.95,
        min_discount=0.9,
        gae_lambda=0.0,
        # Only an episode's first action counts, so a step must be long; and where all steps are paid for
        # their entropy, and share parameters with the first, the pay must be small or it holds that back.
        entropy_cost=5e-4,
        step_size=15.0,
        # A table's entry is one of a hundred in a batch's mean: it moves by half its error.
        value_cost=100.0 / 30.0,
        outer_discount=1.0,
        outer_lambda=0.0,
        outer_entropy_cost=5e-4,
        learning_rate=0.1,
        max_grad_norm=1e9,
    )
    rows, results = [], {}
    panels: dict[str, dict] = {"return": {}, "learned γ": {}}
    for name in main.variants:
        settings = VARIANTS[name]
        algorithm = chain_algorithm(main, family, settings, hyper)
        fitting = chain_algorithm(
            main,
            family,
            dict(learns=(), outer_value="outer_value" in settings),
            hyper._replace(policy_cost=0.0, entropy_cost=0.0),
        )
        runs = []
        for seed in range(main.num_seeds):
            began = time.perf_counter()
            first, _ = advanced(fitting, family, seed, -(-main.value_updates // 2), 1)
            state, curve = advanced(
                algorithm, family, seed, main.meta_updates, 1, lives=first.lives
            )
            task = jax.tree.map(lambda x: x[0], state.lives.task)
            likeliest = first_action(algorithm, family, state)
            last = max(1, main.meta_updates // 50)
            gamma = curve.get("learned/discount", np.full(main.meta_updates, hyper.discount))
            runs.append(
                {
                    "seed": seed,
                    "return": float(curve["return/after"][-last:].mean()),
                    "best_action_return": float(task.reward[likeliest]),
                    "discount": float(gamma[-1]),
                    "lowest_discount": float(gamma.min()),
                    "highest_discount": float(gamma.max()),
                    "seconds": time.perf_counter() - began,
                }
            )
            if seed == 0:
                updates = 2 * np.arange(1, main.meta_updates + 1)
                panels["return"][name] = (updates, smooth(curve["return/after"]))
                panels["learned γ"][name] = (updates, gamma)
            print(f"{name}, {runs[-1]}", file=sys.stderr, flush=True)
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        results[name] = runs
        rows.append(
            {
                "meta-gradient": name,
                "return": f"{mean['return']:.3f}",
                "of the likeliest chain": f"{mean['best_action_return']:.3f}",
                "γ": f"{mean['discount']:.3f}",
                "γ from, to": f"{mean['lowest_discount']:.3f}, {mean['highest_discount']:.3f}",
                "seeds": str(len(runs)),
                "s a run": f"{mean['seconds']:.0f}",
            }
        )
    plots = partial(plotting.lines, panels=panels, x_label="updates of the agent")
    return rows, results, plots


def advanced(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    seed: int,
    meta_updates: int,
    num_tasks: int,
    lives: Any = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """The state after ``meta_updates``, and metrics ``[meta_updates]``; with other ``lives`` to begin with."""

    def run(key: jax.Array, lives: Any) -> tuple[training.Run, dict]:
        first = training.begin(key, algorithm=algorithm)
        if lives is not None:
            first = first._replace(state=first.state._replace(lives=lives))
        return training.advance(
            first,
            jnp.asarray(meta_updates),
            algorithm=algorithm,
            family=family,
            num_tasks=num_tasks,
            max_updates=meta_updates,
        )

    after, metrics = jax.jit(run)(jax.random.key(seed), lives)
    return after.state, jax.tree.map(np.asarray, metrics)


def first_action(algorithm: MetaAlgorithm, family: TaskFamily, state: Any) -> int:
    """The likeliest action of the one agent at the start of an episode."""
    life = jax.tree.map(lambda x: x[0], state.lives)
    obs, _ = family.env.reset_env(jax.random.key(0), life.task)
    timestep = jax.tree.map(lambda x: x[0], life.streams.timestep)._replace(obs=obs)
    keys = jax.random.split(jax.random.key(0), 1000)
    action, log_prob, _ = jax.vmap(
        lambda key: algorithm.learner.act(key, state.meta, life.agent, (), timestep)
    )(keys)
    return int(action[jnp.argmax(log_prob)])


def smooth(values: np.ndarray, share: int = 50) -> np.ndarray:
    """A running mean over 1/share of the values; of what there is at the start."""
    width = max(1, len(values) // share)
    total = np.cumsum(values, dtype=float)
    total[width:] -= total[:-width].copy()
    return total / np.minimum(np.arange(1, len(values) + 1), width)


def scaled_values(family: TaskFamily, hidden_sizes: tuple[int, ...], scale: float) -> Value:
    """A tanh network whose output is multiplied. Adam moves a weight by about a step size at a time, however
    far values have to go, so that without it a γ is also judged by how large its values are."""
    network = value_mlp(family.observation_shape, hidden_sizes)
    return Value(network.init, lambda params, obs: scale * network.apply(params, obs))


def run_physics(main: Physics) -> Outcome:
    family = tasks.make("cartpole")
    sizes: dict[str, Any] = dict(
        num_agents=main.num_agents,
        num_streams=main.num_streams,
        num_steps=main.num_steps,
        hidden_sizes=(32,),
        inner_optimizer="adam",
    )
    value = scaled_values(family, sizes["hidden_sizes"], scale=10.0)
    common = dict(
        step_size=3e-3,
        outer_discount=0.95,
        outer_lambda=1.0,
        learning_rate=0.05,
    )
    grid = [
        Hyper(discount=gamma, gae_lambda=lambda_, **common)
        for gamma in main.discounts
        for lambda_ in main.lambdas
    ]
    middle = Hyper(
        discount=main.discounts[len(main.discounts) // 2],
        gae_lambda=main.lambdas[len(main.lambdas) // 2],
        **common,
    )
    fixed = meta_gradient(family, Config(learns=(), **sizes), value=value)
    learned = {
        name: meta_gradient(family, Config(**variant, **sizes), value=value)
        for name, variant in LEARNED.items()
    }
    began = time.perf_counter()
    curves = {"fixed": mapped(main, family, fixed, grid)}
    print(f"grid: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    for name, algorithm in learned.items():
        began = time.perf_counter()
        curves[name] = mapped(main, family, algorithm, [middle])
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    returns = curves["fixed"]["return/after"]  # [cells, seeds, U]
    ends = last_tenth(returns)  # [cells, seeds]
    order = np.argsort(-ends.mean(1))

    def row(name: str, gamma: str, lambda_: str, returns: np.ndarray) -> dict[str, str]:
        """Of ``returns [seeds, U]``."""
        last = last_tenth(returns)
        return {
            "setting": name,
            "γ": gamma,
            "λ": lambda_,
            "return, last tenth": with_error(last),
            "ahead of the best fixed": with_error(last - ends[order[0]], digits=2),
            "return, lifetime": f"{np.nanmean(returns):.1f}",
            "seeds": str(len(returns)),
        }

    rows = []
    # A search through the grid spends the budget of one run on all of its pairs.
    share = max(1, main.meta_updates // len(grid))
    searched = returns[:, :, :share]
    found = int(np.argmax(np.nan_to_num(last_tenth(searched).mean(1))))
    entries = [("best fixed, its search included", found, searched[found])]
    for place, i in enumerate(order):
        name = {0: "best fixed", len(order) - 1: "worst fixed"}.get(place, "fixed")
        entries.append((name, i, returns[i]))
    for name, i, its in entries:
        rows.append(row(name, f"{grid[i].discount:g}", f"{grid[i].gae_lambda:g}", its))
    panels: dict[str, dict] = {"return": {}, "learned γ and λ": {}}
    updates = 2 * np.arange(1, main.meta_updates + 1)
    for name in reversed(learned):
        metrics = curves[name]
        gamma, lambda_ = (
            metrics[f"learned/{x}"][0] for x in ("discount", "gae_lambda")
        )  # [seeds, U]
        first = [
            f"{start:g} → {x[:, -1].mean():.3f}"
            for start, x in ((middle.discount, gamma), (middle.gae_lambda, lambda_))
        ]
        rows.insert(0, row(name, first[0], first[1], metrics["return/after"][0]))
        panels["return"][name] = (updates, np.nanmean(metrics["return/after"][0], axis=0))
        panels["learned γ and λ"][f"γ, {name}"] = (updates, gamma.mean(0))
        panels["learned γ and λ"][f"λ, {name}"] = (updates, lambda_.mean(0))
    for name, i in (("best fixed", order[0]), ("worst fixed", order[-1])):
        panels["return"][name] = (updates, np.nanmean(returns[i], axis=0))
    results: dict[str, Any] = {
        name: {
            key: x.tolist()
            for key, x in metrics.items()
            if "return/after" in key or "learned" in key
        }
        for name, metrics in curves.items()
    }
    results["grid"] = [[h.discount, h.gae_lambda] for h in grid]
    return rows, results, partial(plotting.lines, panels=panels, x_label="updates of each agent")


def last_tenth(returns: np.ndarray) -> np.ndarray:
    """Means ``[...]`` over the end of ``[..., U]``."""
    return returns[..., -max(1, returns.shape[-1] // 10) :].mean(-1)


def with_error(values: np.ndarray, digits: int = 1) -> str:
    """Mean and standard error of ``values [seeds]``."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def mapped(
    main: Physics, family: TaskFamily, algorithm: MetaAlgorithm, hypers: list[Hyper]
) -> dict[str, np.ndarray]:
    """Metrics ``[settings, seeds, U]``, all in one program; returns are NaN before an episode ends."""

    def run(hyper: Hyper, seed: jax.Array) -> dict[str, jax.Array]:
        begin_key, key = jax.random.split(jax.random.key(seed))
        state = algorithm.init(begin_key, hyper)
        _, metrics = training.advance(
            training.Run(key, state, jnp.zeros((), jnp.int32)),
            jnp.asarray(main.meta_updates),
            algorithm=algorithm,
            family=family,
            num_tasks=main.num_agents,
            max_updates=main.meta_updates,
        )
        return metrics

    stacked = jax.tree.map(lambda *x: jnp.asarray(x, float), *hypers)
    both = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    metrics = jax.device_get(jax.jit(both)(stacked, main.seed + jnp.arange(main.num_seeds)))
    for when in ("before", "after"):
        ended = metrics[f"episodes/{when}"] > 0
        metrics[f"return/{when}"] = np.where(ended, metrics[f"return/{when}"], np.nan)
    return metrics


def run_memory(main: Memory) -> Outcome:
    family = tasks.make("cartpole")
    sizes: dict[str, Any] = dict(
        num_agents=main.num_agents,
        num_streams=main.num_streams,
        num_steps=main.num_steps,
        hidden_sizes=(32,),
        inner_optimizer="adam",
    )
    rows, results = [], []
    panels: dict[str, dict] = {"memory, MB": {}, "time of an update, ms": {}}

    def through(lifetime: int, **settings: Any) -> Callable:
        whole = meta_gradient(family, Config(num_updates=lifetime - 1, **sizes, **settings))
        return lambda key: training.advance(
            training.begin(key, algorithm=whole),
            jnp.asarray(1),
            algorithm=whole,
            family=family,
            num_tasks=main.num_agents,
            max_updates=1,
        )

    def truncated(lifetime: int) -> Callable:
        short = meta_gradient(family, Config(num_updates=1, **sizes))
        return lambda key: training.advance(
            training.begin(key, algorithm=short),
            jnp.asarray(lifetime // 2),
            algorithm=short,
            family=family,
            num_tasks=main.num_agents,
            max_updates=lifetime // 2,
        )

    programs: dict[str, Callable[[int], Callable]] = {
        "through one update, all lifetime": truncated,
        "through the lifetime": through,
        "through the lifetime, values kept": partial(through, rematerialize=False),
    }
    for name, program in programs.items():
        for lifetime in main.lifetimes:
            began = time.perf_counter()
            call = jax.jit(program(lifetime)).lower(jax.random.key(0)).compile()
            compiling = time.perf_counter() - began
            memory = call.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
            began = time.perf_counter()
            _, metrics = jax.block_until_ready(call(jax.random.key(0)))
            seconds = time.perf_counter() - began
            results.append(
                {
                    "meta_gradient": name,
                    "lifetime": lifetime,
                    "memory_bytes": memory,
                    "seconds": seconds,
                    "compile_seconds": compiling,
                    "norm": float(metrics["meta_grad_norm"][-1]),
                }
            )
            print(results[-1], file=sys.stderr, flush=True)
            rows.append(
                {
                    "meta-gradient": name,
                    "lifetime, updates": str(lifetime),
                    "memory, MB": f"{memory / 1e6:.2f}",
                    "time, ms an update": f"{1e3 * seconds / lifetime:.1f}",
                    "last norm": f"{results[-1]['norm']:.2g}",
                }
            )
        mine = [x for x in results if x["meta_gradient"] == name]
        panels["memory, MB"][name] = (main.lifetimes, [x["memory_bytes"] / 1e6 for x in mine])
        panels["time of an update, ms"][name] = (
            main.lifetimes,
            [1e3 * x["seconds"] / x["lifetime"] for x in mine],
        )
    plots = partial(
        plotting.lines, panels=panels, x_label="updates in a lifetime", logarithmic=True
    )
    return rows, {"rows": results}, plots


KINDS: dict[str, tuple[type, Callable]] = {
    "chain": (Chain, run_chain),
    "physics": (Physics, run_physics),
    "memory": (Memory, run_memory),
}


def main(argv: list[str]) -> None:
    settings = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in KINDS.items()}, args=argv, description=__doc__
    )
    reports.refuse_to_overwrite(settings.output)
    training.enable_compilation_cache()
    (run,) = (run for kind, run in KINDS.values() if isinstance(settings, kind))
    rows, results, plot = run(settings)
    reports.leave(settings.output, dataclasses.asdict(settings), rows, results=results)
    plot(settings.output / "meta_gradient.png")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
