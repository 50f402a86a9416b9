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
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import plotting, tasks
from jaxmeta.algorithms.meta_gradient import Config, meta_gradient
from jaxmeta.learners.actor_critic import Hyper
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.runs import training
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm

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


class Chain(study.Study):
    """The discount on the discounting chain of Bonnet et al. 2022."""

    variants: Annotated[study.Names, study.known(VARIANTS)] = tuple(VARIANTS)  # Which to run.
    meta_updates: int = 5000  # Meta-updates, two updates of the agent each.
    num_streams: int = 128  # Episodes in an update.
    value_updates: int = 400  # Updates of values alone before.
    num_seeds: int = 1  # Runs of each.


class Physics(study.Study):
    """γ and λ on cart-poles: learned, and all pairs of fixed ones."""

    discounts: Annotated[study.Numbers, study.within(0, 1)] = (0.8, 0.9, 0.95, 0.98, 0.995)
    """Fixed γ; the learned one starts at the middle one."""
    lambdas: Annotated[study.Numbers, study.within(0, 1)] = (0.0, 0.5, 0.8, 0.95, 1.0)
    """Fixed λ; the learned one starts at the middle one."""
    meta_updates: int = 1500  # Meta-updates, two updates of each agent each.
    num_agents: int = 64
    """Lives, each in a cart-pole of its own; η is shared. With few of them its gradient is mostly noise."""
    num_streams: int = 8  # Parallel episodes of each.
    num_steps: int = 32  # Steps of each between two updates.
    num_seeds: int = 3  # Runs of each setting.
    seed: int = 0  # The first of their seeds.


class Memory(study.Study):
    """Memory of a meta-update against the length of a lifetime."""

    lifetimes: Annotated[tuple[int, ...], study.multiple_of(2)] = (10, 100, 1000)
    """Updates of an agent in its life; even, for a meta-update is two updates."""
    num_agents: int = 4  # Lives.
    num_streams: int = 8  # Parallel episodes of each.
    num_steps: int = 16  # Steps of each between two updates.


def table_of_values(num_chains: int, horizon: int) -> Value:
    """A number for each state of the chain, zero at first."""

    def apply(params: jax.Array, obs: jax.Array) -> jax.Array:
        chain, time = obs[..., 0].astype(jnp.int32), jnp.round(obs[..., 1] * horizon)
        return params[chain + 1, time.astype(jnp.int32)]

    return Value(lambda key: jnp.zeros((num_chains + 1, horizon + 1)), apply)


def chain_algorithm(main: Chain, family: TaskFamily, settings: dict, hyper: Hyper) -> MetaAlgorithm:
    """The meta-gradient of a variant on the chain."""
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
    if "discount" not in config.learns:
        hyper = hyper._replace(min_discount=0.0)  # bounds a learned discount alone
    value = table_of_values(family.action_space.n, family.horizon)
    return meta_gradient(family, config, hyper, value=value)


CHAIN_HYPER = Hyper(
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


def chain_runs(main: Chain, family: TaskFamily, settings: dict) -> list[tuple[dict, dict]]:
    """The figures and the curves of each seed of a variant."""
    algorithm = chain_algorithm(main, family, settings, CHAIN_HYPER)
    only_values = dict(learns=(), outer_value="outer_value" in settings)
    no_policy = CHAIN_HYPER._replace(policy_cost=0.0, entropy_cost=0.0)
    fitting = chain_algorithm(main, family, only_values, no_policy)
    value_updates = -(-main.value_updates // 2)
    fit, train = (
        study.trainer(study.one(x, 0), x, family, num_tasks=1, chunk=chunk)[0]
        for x, chunk in ((fitting, value_updates), (algorithm, main.meta_updates))
    )
    runs = []
    for seed in range(main.num_seeds):
        first = fit(study.one(fitting, seed), value_updates)
        run = study.one(algorithm, seed)
        state = run.state._replace(lives=first.run.state.lives)
        after = train(run._replace(state=state), main.meta_updates)
        state, curve = after.run.state, after.curve
        task = jax.tree.map(lambda x: x[0], state.lives.task)
        last = max(1, main.meta_updates // 50)
        gamma = curve.get("learned/discount", np.full(main.meta_updates, CHAIN_HYPER.discount))
        figures = {
            "seed": seed,
            "return": float(curve["return/after"][-last:].mean()),
            "best_action_return": float(task.reward[first_action(algorithm, family, state)]),
            "discount": float(gamma[-1]),
            "lowest_discount": float(gamma.min()),
            "highest_discount": float(gamma.max()),
            "seconds": first.seconds + after.seconds,
        }
        runs.append((figures, {"return": smooth(curve["return/after"]), "learned γ": gamma}))
    return runs


CHAIN_COLUMNS = """
    meta-gradient = {name} | return = {return:.3f} | of the likeliest chain = {best_action_return:.3f}
    | γ = {discount:.3f} | γ from, to = {lowest_discount:.3f}, {highest_discount:.3f}
    | seeds = {seeds} | s a run = {seconds:.0f}
"""


def run_chain(main: Chain) -> None:
    family = tasks.make("discounting_chain", best_chain=3)
    rows, results = [], {}
    panels: dict[str, dict] = {"return": {}, "learned γ": {}}
    updates = 2 * np.arange(1, main.meta_updates + 1)
    for name in main.variants:
        runs = chain_runs(main, family, VARIANTS[name])
        results[name] = [figures for figures, _ in runs]
        for panel, curve in runs[0][1].items():
            panels[panel][name] = (updates, curve)
        mean = {key: float(np.mean([x[key] for x in results[name]])) for key in results[name][0]}
        rows.append(mean | {"name": name, "seeds": len(runs)})
        study.say(f"{name}, {results[name]}")
    table = study.table(CHAIN_COLUMNS, rows)
    leave(main, table, results, panels, x_label="updates of the agent")


def leave(main: study.Study, rows: list, results: Any, panels: dict, **axes: Any) -> None:
    """Leaves the table, all that was measured, and the figure."""
    study.leave(main, rows, results=results)
    plotting.lines(main.output / "meta_gradient.png", panels=panels, **axes)


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


def config_of(main: Physics | Memory, **settings: Any) -> Config:
    """The settings of agents on cart-poles."""
    sizes = main.some("num_agents", "num_streams", "num_steps")
    return Config(**sizes, hidden_sizes=(32,), inner_optimizer="adam", **settings)


def hyper_of(gamma: float, lambda_: float) -> Hyper:
    """The hyper-parameters of an agent on cart-poles."""
    outer = dict(outer_discount=0.95, outer_lambda=1.0)
    return Hyper(discount=gamma, gae_lambda=lambda_, step_size=3e-3, learning_rate=0.05, **outer)


def run_physics(main: Physics) -> None:
    family = tasks.make("cartpole")
    # Adam moves a weight by about a step size at a time, however far values have to go. Without a
    # factor a γ would also be judged by how large its values are.
    network = value_mlp(family.observation_shape, (32,))
    value = Value(network.init, lambda params, obs: 10.0 * network.apply(params, obs))
    grid = [hyper_of(gamma, lambda_) for gamma in main.discounts for lambda_ in main.lambdas]
    middle = hyper_of(*(x[len(x) // 2] for x in (main.discounts, main.lambdas)))
    contestants: dict[str, tuple[dict, list[Hyper]]] = {"fixed": (dict(learns=()), grid)}
    contestants |= {name: (variant, [middle]) for name, variant in LEARNED.items()}
    curves = {}
    for name, (variant, hypers) in contestants.items():
        algorithm = meta_gradient(family, config_of(main, **variant), value=value)
        curves[name], seconds = study.timed(partial(mapped, main, family, algorithm, hypers))
        study.say(f"{name}: {seconds:.0f} s")
    returns = curves["fixed"]["return/after"]  # [cells, seeds, U]
    order = np.argsort(-last_tenth(returns).mean(1))
    results: dict[str, Any] = {
        name: {k: x.tolist() for k, x in metrics.items() if "return/after" in k or "learned" in k}
        for name, metrics in curves.items()
    }
    results["grid"] = [[h.discount, h.gae_lambda] for h in grid]
    rows = physics_rows(main, curves, grid, middle, order)
    panels = physics_panels(main, curves, order)
    leave(main, rows, results, panels, x_label="updates of each agent")


def physics_rows(
    main: Physics, curves: dict[str, Any], grid: list[Hyper], middle: Hyper, order: np.ndarray
) -> list[dict[str, str]]:
    """The table: settings that are learned, then the grid from the best one down."""
    returns = curves["fixed"]["return/after"]  # [cells, seeds, U]
    entries: list[tuple[str, str, str, np.ndarray]] = []
    for name in LEARNED:
        moved = (
            f"{getattr(middle, x):g} → {curves[name][f'learned/{x}'][0][:, -1].mean():.3f}"
            for x in ("discount", "gae_lambda")
        )
        entries.append((name, *moved, curves[name]["return/after"][0]))
    # A search through the grid spends the budget of one run on all of its pairs.
    searched = returns[:, :, : max(1, main.meta_updates // len(grid))]
    found = int(np.argmax(np.nan_to_num(last_tenth(searched).mean(1))))
    cells = [("best fixed, its search included", found, searched[found])]
    names = {0: "best fixed", len(order) - 1: "worst fixed"}
    cells += [(names.get(place, "fixed"), i, returns[i]) for place, i in enumerate(order)]
    entries += [(x, f"{grid[i].discount:g}", f"{grid[i].gae_lambda:g}", its) for x, i, its in cells]
    best = last_tenth(returns)[order[0]]
    rows = []
    for setting, discount, gae_lambda, its in entries:  # its returns [seeds, U]
        last = last_tenth(its)
        rows.append(
            {
                "setting": setting,
                "γ": discount,
                "λ": gae_lambda,
                "return, last tenth": with_error(last),
                "ahead of the best fixed": with_error(last - best, digits=2),
                "return, lifetime": f"{np.nanmean(its):.1f}",
                "seeds": str(len(its)),
            }
        )
    return rows


def physics_panels(main: Physics, curves: dict[str, Any], order: np.ndarray) -> dict[str, dict]:
    """Lines of returns and of the learned hyper-parameters over meta-updates."""
    updates = 2 * np.arange(1, main.meta_updates + 1)
    fixed = curves["fixed"]["return/after"]
    shown = {name: curves[name]["return/after"][0] for name in reversed(LEARNED)}
    shown |= {"best fixed": fixed[order[0]], "worst fixed": fixed[order[-1]]}
    learned = {
        f"{sign}, {name}": curves[name][f"learned/{x}"][0]
        for name in reversed(LEARNED)
        for sign, x in (("γ", "discount"), ("λ", "gae_lambda"))
    }
    return {
        "return": {name: (updates, np.nanmean(x, axis=0)) for name, x in shown.items()},
        "learned γ and λ": {name: (updates, x.mean(0)) for name, x in learned.items()},
    }


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
    numbers = main.seed + jnp.arange(main.num_seeds)
    runs = jax.jit(partial(training.begin_population, algorithm=algorithm))(numbers, hypers)
    told = dict(num_tasks=main.num_agents, chunk=main.meta_updates)
    train, _ = study.trainer(runs, algorithm, family, **told)
    metrics = train(runs, main.meta_updates).curve
    for when in ("before", "after"):
        ended = metrics[f"episodes/{when}"] > 0
        metrics[f"return/{when}"] = np.where(ended, metrics[f"return/{when}"], np.nan)
    return metrics


def lived(main: Memory, lifetime: int, num_updates: int, **settings: Any) -> Callable:
    """A function that takes all agents through their lives, ``num_updates + 1`` updates at a time."""
    family = tasks.make("cartpole")
    algorithm = meta_gradient(family, config_of(main, num_updates=num_updates, **settings))
    told = dict(num_tasks=main.num_agents, most=lifetime // (num_updates + 1))
    advance = study.advancing(algorithm, family, **told)
    return lambda key: advance(training.begin(key, algorithm=algorithm))


MEMORY_COLUMNS = """
    meta-gradient = {meta_gradient} | lifetime, updates = {lifetime} | memory, MB = {megabytes:.2f}
    | time, ms an update = {ms:.1f} | last norm = {norm:.2g}
"""


KEPT: dict[str, tuple[int | None, dict[str, Any]]] = {
    "through one update, all lifetime": (1, {}),
    "through the lifetime": (None, {}),
    "through the lifetime, values kept": (None, dict(rematerialize=False)),
}
"""The updates that a meta-gradient goes through, None for all of them, and its options."""


def run_memory(main: Memory) -> None:
    results = []
    for name, lifetime in itertools.product(KEPT, main.lifetimes):
        seen, options = KEPT[name]
        program = lived(main, lifetime, seen or lifetime - 1, **options)
        compiled = study.compiled(program, jax.random.key(0))
        (_, metrics), seconds = study.timed(partial(compiled.call, jax.random.key(0)))
        results.append(
            {
                "meta_gradient": name,
                "lifetime": lifetime,
                "memory_bytes": compiled.memory,
                "seconds": seconds,
                "compile_seconds": compiled.seconds,
                "norm": float(metrics["meta_grad_norm"][-1]),
            }
        )
        study.say(results[-1])
    shown = [
        row | dict(megabytes=row["memory_bytes"] / 1e6, ms=1e3 * row["seconds"] / row["lifetime"])
        for row in results
    ]
    ys = {"memory, MB": "megabytes", "time of an update, ms": "ms"}
    panels = study.panels(shown, "meta_gradient", "lifetime", ys)
    axes = dict(x_label="updates in a lifetime", logarithmic=True)
    leave(main, study.table(MEMORY_COLUMNS, shown), {"rows": results}, panels, **axes)


if __name__ == "__main__":
    study.main({Chain: run_chain, Physics: run_physics, Memory: run_memory}, __doc__)
