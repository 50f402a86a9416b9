"""Which policy-gradient estimator? Bias, variance and cost of each, exactly, on an MDP of your size.

Nothing is sampled: the expectation and the variance of an estimator are sums over all trajectories of a
random finite MDP with a softmax-linear policy, in float64. A second table does the same for gradients
through an adaptation step on a batch of N trajectories, against both objectives that there are: what is
earned after adapting to N trajectories, F_N, and after a step along the true gradient, F_inf.

    python benchmarks/estimators.py --values exact --distance 0.3 --output runs/estimators
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import plotting
from jaxmeta.estimators import exact, returns, surrogates
from jaxmeta.estimators.surrogates import Surrogate

MAX_PATHS = 1_000_000
UNBIASED = 1e-11
"""Relative bias below which rounding is all there is."""


META_GRADIENTS = (
    *("first-order", "naive", "lvc", "loaded_dice 0.5", "dice"),
    *(f"naive + E-MAML, {baseline}" for baseline in ("b = 0", "b = J(θ)", "leave one out")),
)


class Main(study.Study):
    """Bias, variance and cost of policy-gradient estimators, by enumeration."""

    num_states: int = 4  # States of the MDP (S).
    num_actions: int = 3  # Actions (A).
    horizon: int = 5
    """Steps of a trajectory (H); (S A)^H of them are enumerated, at most a million."""
    discount: Annotated[float, study.within(0, 1)] = 0.95  # γ.
    num_features: int = 6  # Parameters of the softmax-linear policy (F).
    distance: Annotated[float, study.within(0, 1e6)] = 0.0
    """|θ - θ_μ|: how far the policy that acts is from the one that is differentiated; 0 is on-policy."""
    values: Literal["zero", "exact", "wrong"] = "exact"
    """Values in the TD errors: none, those of the policy that acts, or random numbers."""
    num_streams: int = 20  # Trajectories in a batch (N), for the standard deviation and the cost.
    cost_steps: int = 100  # Steps of the trajectories on which cost is measured.
    meta_batch_sizes: tuple[int, ...] = (1, 2, 5, 10)
    """Trajectories per adaptation step, in the second table."""
    step_size: Annotated[float, study.within(-1e6, 1e6)] = 0.5  # Of the adaptation step (α).
    seed: int = 0  # Of the MDP, the features and the policies.

    def __post_init__(self) -> None:
        super().__post_init__()
        # In logarithms: the number itself may have too many digits to be computed.
        digits = self.horizon * math.log10(self.num_states * self.num_actions)
        if digits > math.log10(MAX_PATHS):
            raise ValueError(
                f"num_states={self.num_states}, num_actions={self.num_actions} and "
                f"horizon={self.horizon} make 10^{digits:.1f} trajectories; at most {MAX_PATHS} are enumerated"
            )
        for size in self.meta_batch_sizes:
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

    def steps(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Discounts and first steps of trajectories of a shape, its last axis time."""
        first = jnp.zeros(shape, bool).at[..., 0].set(True)
        return jnp.full(shape, self.mdp.discount), first

    def td_errors(self) -> jax.Array:
        """``[P, H]``."""
        reward, time = self.mdp.reward[self.states, self.actions], np.arange(self.horizon)[None, :]
        # Values are 0 at H, so any state will do as the last one's successor.
        following = jnp.roll(self.states, -1, axis=1)
        v, v_next = self.values[time, self.states], self.values[time + 1, following]
        return returns.td_errors(reward, self.mdp.discount, v=v, v_next=v_next)


def make_world(
    key: jax.Array, main: Main, features: jax.Array, horizon: int, initial_state: int | None = None
) -> World:
    """A random MDP with states and actions for these ``features [S, A, F]``."""
    num_states, num_actions, num_features = features.shape
    mdp_key, theta_key, values_key = jax.random.split(key, 3)
    sizes = dict(num_states=num_states, num_actions=num_actions)
    mdp = exact.random_mdp(mdp_key, **sizes, discount=main.discount)
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

    barred = partial(of, surrogates.vtrace, off_policy=off_policy)
    bars = [(2.0, 2.0), (math.inf, 1.0), (1.0, 1.0)] if off_policy else [(2.0, 2.0)]
    return {
        "score": of(surrogates.score),
        "lvc": of(surrogates.lvc),
        "ppo_clip": surrogates.ppo_clip,
        **{f"taypo {n}": of(surrogates.taypo, order=n) for n in (1, 2, 3)},
        **{f"loaded_dice {x}": of(surrogates.loaded_dice, lambda_=x) for x in (0.5, 0.95)},
        "dice": of(surrogates.loaded_dice),
        **{f"vtrace ({rho:g}, {c:g})": barred(rho_bar=rho, c_bar=c) for rho, c in bars},
    }


def norm(x: jax.Array) -> float:
    """The Euclidean norm."""
    return float(jnp.linalg.norm(x))


def deviation(mean: jax.Array, square: jax.Array) -> float:
    """The standard deviation of an estimate by its mean and mean square: the root of a trace."""
    return math.sqrt(max(float(square) - norm(mean) ** 2, 0.0))


def expected(find: Callable, p: jax.Array, batch_size: int) -> tuple[list, list]:
    """Means over batches of trajectories: of the arrays ``find(indices [N])``, and of their squared norms."""

    def statistic(indices: jax.Array) -> Any:
        found = find(indices)
        return found, [jnp.sum(x**2) for x in found]

    return exact.batch_expectation(statistic, p, batch_size=batch_size)


def moments(estimator: Surrogate, world: World) -> dict[str, dict[str, float]]:
    """Bias and deviation of an estimator's gradient and Hessian, relative to the norm of the truth."""

    @jax.jit
    def enumerate_paths(world: World) -> Any:
        delta, log_mu = world.td_errors(), world.log_policy(world.theta_mu)

        def estimate(index: jax.Array) -> Any:
            path = index[0]
            step = (world.states[path], world.actions[path])

            def value(theta: jax.Array) -> jax.Array:
                rows = world.log_policy(theta)[step], log_mu[step], delta[path]
                return estimator(*rows, *world.steps((world.horizon,)))

            return exact.derivatives(value, world.theta)

        truth = exact.derivatives(world.objective, world.theta)
        return expected(estimate, world.probabilities(world.theta_mu), 1), truth

    (mean, square), truth = enumerate_paths(world)
    return {
        name: {
            "bias": norm(mean[i] - truth[i]) / norm(truth[i]),
            "std": deviation(mean[i], square[i]) / norm(truth[i]),
        }
        for i, name in enumerate(("gradient", "hessian"))
    }


def microseconds(estimator: Surrogate, world: World, main: Main, repeats: int = 100) -> float:
    """Median time of a gradient and a Hessian-vector product on N trajectories of ``cost_steps``."""
    shape = (main.num_streams, main.cost_steps)
    rng = np.random.default_rng(main.seed)
    step = tuple(jnp.array(rng.integers(size, size=shape)) for size in world.mdp.reward.shape)
    delta = jnp.array(rng.normal(size=shape))
    rows = world.log_policy(world.theta_mu)[step], delta, *world.steps(shape)

    def value(theta: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(estimator)(world.log_policy(theta)[step], *rows))

    call = jax.jit(lambda theta, v: jax.jvp(jax.grad(value), (theta,), (v,)))
    calls = range(repeats + 1)  # the first one compiles
    _, *seconds = (study.timed(lambda: call(world.theta, world.theta_mu))[1] for _ in calls)
    return 1e6 * float(np.median(seconds))


class Batches(NamedTuple):
    """One step on a batch of ``size`` trajectories of a policy, and gradients through it."""

    world: World
    size: int
    step_size: float

    def log_prob(self, theta: jax.Array, indices: jax.Array) -> jax.Array:
        """``[N, H]``, of the trajectories at ``indices [N]``."""
        return self.world.log_policy(theta)[self.world.states[indices], self.world.actions[indices]]

    def gains(self, theta: jax.Array, indices: jax.Array, name: str) -> jax.Array:
        """The surrogate of this name on each trajectory, ``[N]``."""
        now, delta = self.log_prob(theta, indices), self.world.td_errors()[indices]
        rows = now, jax.lax.stop_gradient(now), delta, *self.world.steps(now.shape)
        return jax.vmap(estimators(off_policy=False)[name])(*rows)

    def update(self, theta: jax.Array, indices: jax.Array, name: str = "score") -> jax.Array:
        """θ after the step."""
        gradient = jax.grad(lambda theta: jnp.mean(self.gains(theta, indices, name)))
        return theta + self.step_size * gradient(theta)

    def estimates(self, indices: jax.Array) -> list[jax.Array]:
        """The meta-gradients of `META_GRADIENTS` by one batch."""
        theta, objective = self.world.theta, self.world.objective
        earned, slope = jax.value_and_grad(objective)(self.update(theta, indices))
        gradients = jax.jacrev(lambda theta: self.gains(theta, indices, "score"))(theta)  # [N, F]
        others = jax.vmap(surrogates.leave_one_out_mean, in_axes=1, out_axes=1)(gradients)
        without = jax.vmap(objective)(theta[None] + self.step_size * others)

        def through(name: str) -> jax.Array:
            _, pullback = jax.vjp(lambda theta: self.update(theta, indices, name), theta)
            return pullback(slope)[0]

        def sampling(baseline: jax.Array | float) -> jax.Array:
            gain = jnp.broadcast_to(earned - baseline, (self.size,))
            correction = partial(surrogates.sampling_correction, gain=gain)
            return jax.grad(lambda theta: correction(self.log_prob(theta, indices)))(theta)

        naive = through("score")
        found = [slope, naive, through("lvc"), through("loaded_dice 0.5"), through("dice")]
        return found + [naive + sampling(b) for b in (0.0, objective(theta), without)]

    def truths(self) -> tuple[jax.Array, jax.Array]:
        """The gradients of F_N and of F_inf."""
        world = self.world

        def finite(theta: jax.Array) -> jax.Array:
            told = world.objective, self.update, world.probabilities, theta
            return exact.finite_batch_objective(*told, batch_size=self.size)

        def limit(theta: jax.Array) -> jax.Array:
            return exact.limit_objective(world.objective, theta, self.step_size)

        return jax.grad(finite)(world.theta), jax.grad(limit)(world.theta)


def meta_gradients(world: World, main: Main, batch_size: int) -> dict[str, dict[str, float]]:
    """Bias and standard deviation of gradients through one step on ``batch_size`` trajectories.

    The gradient of the return after the step is exact, so all variance is that of the batch adapted to.
    Relative to the norm of the exact ∇F_N.
    """

    @jax.jit
    def enumerate_batches(world: World) -> Any:
        batches = Batches(world, batch_size, main.step_size)
        p = world.probabilities(world.theta)
        return expected(batches.estimates, p, batch_size), batches.truths()

    (mean, square), (finite, limit) = enumerate_batches(world)
    return {
        name: {
            "bias": norm(mean[i] - finite) / norm(finite),
            "bias_limit": norm(mean[i] - limit) / norm(limit),
            "std": deviation(mean[i], square[i]) / norm(finite),
        }
        for i, name in enumerate(META_GRADIENTS)
    }


def shown(bias: float) -> str:
    """A bias as a cell of the table."""
    return "0" if bias < UNBIASED else f"{bias:.1e}"


def estimator_table(rows: dict[str, dict[str, Any]], num_streams: int) -> list[str]:
    """The lines of the first table."""

    def cells(bias: float, std: float) -> list[str]:
        return [shown(bias), f"{std:.2f}", f"{std / num_streams**0.5:.2f}"]

    names = "gradient: bias", "std", "std, N", "Hessian: bias", "std", "std, N", "µs"
    lines = [
        (name, *cells(**x["gradient"]), *cells(**x["hessian"]), f"{x['microseconds']:.0f}")
        for name, x in rows.items()
    ]
    return study.markdown(("estimator", *names), lines)


def meta_gradient_table(columns: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    """The lines of the second table."""

    def cell(x: dict[str, float]) -> str:
        return f"{shown(x['bias'])} / {shown(x['bias_limit'])} / {x['std']:.2f}"

    rows = [(name, *(cell(x[name]) for x in columns.values())) for name in META_GRADIENTS]
    return study.markdown(("meta-gradient", *(f"N = {size}" for size in columns)), rows)


def run(main: Main) -> None:
    jax.config.update("jax_enable_x64", True)
    features_key, key, small_key = jax.random.split(jax.random.key(main.seed), 3)
    shape = (main.num_states, main.num_actions, main.num_features)
    features = jax.random.normal(features_key, shape)
    world = make_world(key, main, features, horizon=main.horizon)
    rows: dict[str, dict[str, Any]] = {}
    for name, estimator in estimators(off_policy=main.distance > 0).items():
        study.say(f"  {name}: {len(world.states)} trajectories")
        rows[name] = moments(estimator, world)
        rows[name]["microseconds"] = microseconds(estimator, world, main)
    tabular = jnp.eye(4).reshape(2, 2, 4)
    on_policy = dataclasses.replace(main, distance=0.0)
    small = make_world(small_key, on_policy, tabular, horizon=2, initial_state=0)
    columns = {}
    for size in main.meta_batch_sizes:
        study.say(f"  meta-gradients: batches of {size}")
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
    study.leave(main, lines, estimators=rows, meta_gradients=columns)
    plotting.estimators(main.output / "estimators.png", rows, title=behaviour)
    plotting.meta_gradients(main.output / "meta_gradients.png", columns)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
