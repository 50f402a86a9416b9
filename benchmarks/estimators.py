"""Which policy-gradient estimator? Bias, variance and cost of each, exactly, on an MDP of your size.

Nothing is sampled: the expectation and the variance of an estimator are sums over all trajectories of a
random finite MDP with a softmax-linear policy, in float64. A second table does the same for gradients
through an adaptation step on a batch of N trajectories, against both objectives that there are: what is
earned after adapting to N trajectories, F_N, and after a step along the true gradient, F_inf.

    python benchmarks/estimators.py --values exact --distance 0.3 --output runs/estimators

Leaves results.json, table.md, estimators.png and meta_gradients.png in the output folder.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, plotting
from jaxmeta.estimators import exact, returns, surrogates
from jaxmeta.estimators.surrogates import Surrogate
from jaxmeta.runs import reports, training

MAX_PATHS = 1_000_000
UNBIASED = 1e-11
"""Relative bias below which rounding is all there is."""


META_GRADIENTS = (
    "first-order",
    "naive",
    "lvc",
    "loaded_dice 0.5",
    "dice",
    "naive + E-MAML, b = 0",
    "naive + E-MAML, b = J(θ)",
    "naive + E-MAML, leave one out",
)


@dataclasses.dataclass(frozen=True)
class Main:
    """Bias, variance and cost of policy-gradient estimators, by enumeration."""

    output: Path = Path("runs/estimators")
    """Folder for the results; made anew."""
    num_states: int = 4
    """States of the MDP (S)."""
    num_actions: int = 3
    """Actions (A)."""
    horizon: int = 5
    """Steps of a trajectory (H); (S A)^H of them are enumerated, at most a million."""
    discount: float = 0.95
    """γ."""
    num_features: int = 6
    """Parameters of the softmax-linear policy (F)."""
    distance: float = 0.0
    """|θ - θ_μ|: how far the policy that acts is from the one that is differentiated; 0 is on-policy."""
    values: Literal["zero", "exact", "wrong"] = "exact"
    """Values in the TD errors: none, those of the policy that acts, or random numbers."""
    num_streams: int = 20
    """Trajectories in a batch (N), for the standard deviation and the cost."""
    cost_steps: int = 100
    """Steps of the trajectories on which cost is measured."""
    meta_batch_sizes: tuple[int, ...] = (1, 2, 5, 10)
    """Trajectories per adaptation step, in the second table."""
    step_size: float = 0.5
    """Of the adaptation step (α)."""
    seed: int = 0
    """Of the MDP, the features and the policies."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("num_states", "num_actions", "horizon", "num_features", "cost_steps"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("num_streams", self.num_streams, 1)
        checks.between("discount", self.discount, 0, 1)
        checks.between("distance", self.distance, 0, 1e6)
        checks.between("step_size", self.step_size, -1e6, 1e6)
        checks.at_least("seed", self.seed, 0, 2**32 - 1)
        # In logarithms: the number itself may have too many digits to be computed.
        digits = self.horizon * math.log10(self.num_states * self.num_actions)
        if digits > math.log10(MAX_PATHS):
            raise ValueError(
                f"num_states={self.num_states}, num_actions={self.num_actions} and "
                f"horizon={self.horizon} make 10^{digits:.1f} trajectories; at most {MAX_PATHS} are enumerated"
            )
        checks.some("meta_batch_sizes", self.meta_batch_sizes)
        for size in self.meta_batch_sizes:
            checks.at_least("meta_batch_sizes", size, 1)
            if math.comb(size + 7, size) > MAX_PATHS:
                raise ValueError(
                    f"meta_batch_sizes={self.meta_batch_sizes}: there are {math.comb(size + 7, size)} "
                    f"batches of {size}; at most {MAX_PATHS} are enumerated"
                )


class World(NamedTuple):
    """A finite MDP, a softmax-linear policy at θ, the one at θ_μ that acts, and all trajectories."""

    mdp: exact.MDP
    features: jax.Array  # [S, A, F]
    theta: jax.Array  # [F]
    theta_mu: jax.Array  # [F]
    values: jax.Array  # [H + 1, S]
    states: jax.Array  # [P, H]
    actions: jax.Array  # [P, H]

    @property
    def horizon(self) -> int:
        return self.states.shape[1]

    def policy(self, theta: jax.Array) -> jax.Array:
        return exact.softmax_linear(self.features, theta)

    def log_policy(self, theta: jax.Array) -> jax.Array:
        return jnp.log(self.policy(theta))

    def objective(self, theta: jax.Array) -> jax.Array:
        return exact.expected_return(self.mdp, self.policy(theta), self.horizon)

    def probabilities(self, theta: jax.Array) -> jax.Array:
        return exact.probabilities(self.mdp, self.policy(theta), self.states, self.actions)

    def td_errors(self) -> jax.Array:
        """``[P, H]``."""
        reward, time = self.mdp.reward[self.states, self.actions], np.arange(self.horizon)[None, :]
        # Values are 0 at H, so any state will do as the last one's successor.
        following = jnp.roll(self.states, -1, axis=1)
        v, v_next = self.values[time, self.states], self.values[time + 1, following]
        return returns.td_errors(reward, self.mdp.discount, v=v, v_next=v_next)


def make_world(
    key: jax.Array,
    main: Main,
    features: jax.Array,
    *,
    horizon: int,
    initial_state: int | None = None,
) -> World:
    """A random MDP with states and actions for these ``features [S, A, F]``."""
    num_states, num_actions, num_features = features.shape
    mdp_key, theta_key, values_key = jax.random.split(key, 3)
    mdp = exact.random_mdp(
        mdp_key, num_states=num_states, num_actions=num_actions, discount=main.discount
    )
    if initial_state is not None:
        mdp = mdp._replace(initial=jnp.eye(num_states)[initial_state])
    theta, direction = jax.random.normal(theta_key, (2, num_features))
    theta = 0.5 * theta
    theta_mu = theta + main.distance * direction / jnp.linalg.norm(direction)
    values = exact.values(mdp, exact.softmax_linear(features, theta_mu), horizon)
    if main.values == "zero":
        values = jnp.zeros_like(values)
    if main.values == "wrong":
        values = jax.random.normal(values_key, values.shape).at[horizon].set(0.0)
    paths = exact.trajectories(num_states, num_actions, horizon, initial_state=initial_state)
    return World(mdp, features, theta, theta_mu, values, *map(jnp.asarray, paths))


def estimators(*, off_policy: bool) -> dict[str, Surrogate]:
    """The library's surrogates; bars of 1 would sit on the ratios where the policy itself acts."""

    def of(weights: Callable, **settings: Any) -> Surrogate:
        return partial(surrogates.surrogate, weights=partial(weights, **settings))

    bars = [(2.0, 2.0), (math.inf, 1.0), (1.0, 1.0)] if off_policy else [(2.0, 2.0)]
    return {
        "score": of(surrogates.score),
        "lvc": of(surrogates.lvc),
        "ppo_clip": surrogates.ppo_clip,
        **{f"taypo {n}": of(surrogates.taypo, order=n) for n in (1, 2, 3)},
        **{f"loaded_dice {x}": of(surrogates.loaded_dice, lambda_=x) for x in (0.5, 0.95)},
        "dice": of(surrogates.loaded_dice),
        **{
            f"vtrace ({rho:g}, {c:g})": of(
                surrogates.vtrace, rho_bar=rho, c_bar=c, off_policy=off_policy
            )
            for rho, c in bars
        },
    }


def norm(x: jax.Array) -> float:
    return float(jnp.linalg.norm(x))


def moments(estimator: Surrogate, world: World) -> dict[str, dict[str, float]]:
    """Relative bias and standard deviation, per trajectory, of an estimator's gradient and Hessian.

    The deviation is the root of the covariance's trace; both are relative to the norm of the truth.
    """
    discount = jnp.full(world.horizon, world.mdp.discount)
    first = jnp.zeros(world.horizon, bool).at[0].set(True)

    @jax.jit
    def enumerate_paths(world: World) -> Any:
        delta, log_mu = world.td_errors(), world.log_policy(world.theta_mu)

        def statistic(index: jax.Array) -> Any:
            path = index[0]
            step = (world.states[path], world.actions[path])

            def value(theta: jax.Array) -> jax.Array:
                log_prob = world.log_policy(theta)[step]
                return estimator(log_prob, log_mu[step], delta[path], discount, first)

            estimate = exact.derivatives(value, world.theta)
            return estimate, [jnp.sum(x**2) for x in estimate]

        p = world.probabilities(world.theta_mu)
        return exact.batch_expectation(statistic, p, batch_size=1), exact.derivatives(
            world.objective, world.theta
        )

    (mean, square), truth = enumerate_paths(world)
    return {
        name: {
            "bias": norm(mean[i] - truth[i]) / norm(truth[i]),
            "std": math.sqrt(max(float(square[i]) - norm(mean[i]) ** 2, 0.0)) / norm(truth[i]),
        }
        for i, name in enumerate(("gradient", "hessian"))
    }


def microseconds(estimator: Surrogate, world: World, main: Main, repeats: int = 100) -> float:
    """Median time of a gradient and a Hessian-vector product on N trajectories of ``cost_steps``."""
    shape = (main.num_streams, main.cost_steps)
    rng = np.random.default_rng(main.seed)
    step = tuple(jnp.array(rng.integers(size, size=shape)) for size in world.mdp.reward.shape)
    delta = jnp.array(rng.normal(size=shape))
    discount = jnp.full(shape, world.mdp.discount)
    first = jnp.zeros(shape, bool).at[:, 0].set(True)
    log_mu = world.log_policy(world.theta_mu)[step]

    def value(theta: jax.Array) -> jax.Array:
        rows = (world.log_policy(theta)[step], log_mu, delta, discount, first)
        return jnp.mean(jax.vmap(estimator)(*rows))

    call = jax.jit(lambda theta, v: jax.jvp(jax.grad(value), (theta,), (v,)))
    jax.block_until_ready(call(world.theta, world.theta_mu))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call(world.theta, world.theta_mu))
        seconds.append(time.perf_counter() - began)
    return 1e6 * float(np.median(seconds))


def meta_gradients(world: World, main: Main, batch_size: int) -> dict[str, dict[str, float]]:
    """Bias and standard deviation of gradients through one step on ``batch_size`` trajectories.

    The gradient of the return after the step is exact, so all variance is that of the batch adapted to.
    Relative to the norm of the exact ∇F_N.
    """
    discount = jnp.full((batch_size, world.horizon), world.mdp.discount)
    first = jnp.zeros((batch_size, world.horizon), bool).at[:, 0].set(True)
    surrogates = estimators(off_policy=False)

    @jax.jit
    def enumerate_batches(world: World) -> Any:
        delta, theta = world.td_errors(), world.theta

        def log_prob(theta: jax.Array, indices: jax.Array) -> jax.Array:
            return world.log_policy(theta)[world.states[indices], world.actions[indices]]

        def gains(theta: jax.Array, indices: jax.Array, name: str) -> jax.Array:
            """The surrogate on each stream, ``[N]``."""
            now = log_prob(theta, indices)
            rows = (now, jax.lax.stop_gradient(now), delta[indices], discount, first)
            return jax.vmap(surrogates[name])(*rows)

        def update(theta: jax.Array, indices: jax.Array, name: str = "score") -> jax.Array:
            gradient = jax.grad(lambda theta: jnp.mean(gains(theta, indices, name)))
            return theta + main.step_size * gradient(theta)

        def statistic(indices: jax.Array) -> Any:
            adapted = update(theta, indices)
            earned, slope = jax.value_and_grad(world.objective)(adapted)
            gradients = jax.jacrev(lambda theta: gains(theta, indices, "score"))(theta)  # [N, F]
            others = jax.vmap(surrogates.leave_one_out_mean, in_axes=1, out_axes=1)(gradients)
            without = jax.vmap(world.objective)(theta + main.step_size * others)

            def through(name: str) -> jax.Array:
                _, pullback = jax.vjp(lambda theta: update(theta, indices, name), theta)
                return pullback(slope)[0]

            def sampling(baseline: jax.Array | float) -> jax.Array:
                gain = jnp.broadcast_to(earned - baseline, (batch_size,))
                return jax.grad(
                    lambda theta: surrogates.sampling_correction(log_prob(theta, indices), gain)
                )(theta)

            naive = through("score")
            found = [slope, naive, through("lvc"), through("loaded_dice 0.5"), through("dice")]
            found += [naive + sampling(b) for b in (0.0, world.objective(theta), without)]
            return found, [jnp.sum(x**2) for x in found]

        def finite(theta: jax.Array) -> jax.Array:
            return exact.finite_batch_objective(
                world.objective, update, world.probabilities, theta, batch_size=batch_size
            )

        def limit(theta: jax.Array) -> jax.Array:
            return exact.limit_objective(world.objective, theta, main.step_size)

        p = world.probabilities(theta)
        expected = exact.batch_expectation(statistic, p, batch_size=batch_size)
        return expected, jax.grad(finite)(theta), jax.grad(limit)(theta)

    (mean, square), finite, limit = enumerate_batches(world)
    return {
        name: {
            "bias": norm(mean[i] - finite) / norm(finite),
            "bias_limit": norm(mean[i] - limit) / norm(limit),
            "std": math.sqrt(max(float(square[i]) - norm(mean[i]) ** 2, 0.0)) / norm(finite),
        }
        for i, name in enumerate(META_GRADIENTS)
    }


def cell(bias: float) -> str:
    return "0" if bias < UNBIASED else f"{bias:.1e}"


def estimator_table(rows: dict[str, dict[str, Any]], num_streams: int) -> Sequence[str]:
    lines = [
        "| estimator | gradient: bias | std | std, N | Hessian: bias | std | std, N | µs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = []
        for kind in ("gradient", "hessian"):
            std = row[kind]["std"]
            cells += [cell(row[kind]["bias"]), f"{std:.2f}", f"{std / num_streams**0.5:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['microseconds']:.0f} |")
    return lines


def meta_gradient_table(columns: dict[int, dict[str, dict[str, float]]]) -> Sequence[str]:
    lines = [
        f"| meta-gradient | {' | '.join(f'N = {size}' for size in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in next(iter(columns.values())):
        rows = [column[name] for column in columns.values()]
        cells = [f"{cell(x['bias'])} / {cell(x['bias_limit'])} / {x['std']:.2f}" for x in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(main: Main) -> None:
    reports.refuse_to_overwrite(main.output)
    jax.config.update("jax_enable_x64", True)
    training.enable_compilation_cache()
    features_key, key, small_key = jax.random.split(jax.random.key(main.seed), 3)
    shape = (main.num_states, main.num_actions, main.num_features)
    features = jax.random.normal(features_key, shape)
    world = make_world(key, main, features, horizon=main.horizon)
    rows: dict[str, dict[str, Any]] = {}
    for name, estimator in estimators(off_policy=main.distance > 0).items():
        print(f"  {name}: {len(world.states)} trajectories", file=sys.stderr, flush=True)
        rows[name] = moments(estimator, world)
        rows[name]["microseconds"] = microseconds(estimator, world, main)
    tabular = jnp.eye(4).reshape(2, 2, 4)
    on_policy = dataclasses.replace(main, distance=0.0)
    small = make_world(small_key, on_policy, tabular, horizon=2, initial_state=0)
    columns = {}
    for size in main.meta_batch_sizes:
        print(f"  meta-gradients: batches of {size}", file=sys.stderr, flush=True)
        columns[size] = meta_gradients(small, main, size)

    behaviour = f"off-policy, |θ - θ_μ| = {main.distance:g}" if main.distance else "on-policy"
    lines = [
        f"Bias and standard deviation per trajectory, relative to the exact derivative's norm; N = "
        f"{main.num_streams}; µs for a gradient and a Hessian-vector product of N × {main.cost_steps} "
        f"steps. {behaviour}, {main.values} values, {len(world.states)} trajectories.",
        "",
        *estimator_table(rows, main.num_streams),
        "",
        "Bias against ∇F_N / bias against ∇F_inf / standard deviation of one batch's meta-gradient, on "
        "two states, two actions, two steps; on-policy, the return after adaptation exact.",
        "",
        *meta_gradient_table(columns),
    ]
    settings = dataclasses.asdict(main)
    reports.leave(main.output, settings, lines, estimators=rows, meta_gradients=columns)
    plotting.estimators(main.output / "estimators.png", rows, title=behaviour)
    plotting.meta_gradients(main.output / "meta_gradients.png", columns)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
