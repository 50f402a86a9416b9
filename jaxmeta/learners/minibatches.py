"""Gradient steps on minibatches of trials, shared by devices and taken in chunks.

Trials stand in the order of their tasks, and D devices that share the tasks hold a block of trials each. A minibatch
takes as many trials from each of ``minibatch_groups`` blocks, in a random order of each block. So where D divides the
number of groups, no trial leaves its device: a device computes the gradient of its trials, and the sum of these
gradients is all that crosses devices, once a minibatch. The groups are a setting, and not the number of devices. So
one device computes the same numbers, to rounding.

A gradient is a sum over trials. ``trials_per_chunk`` bounds the trials whose intermediate values are in memory at a
time. The divisors of a loss are counted in the whole minibatch first (`Counts`), so the sum over chunks is the gradient of
the whole.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxmeta import checks, types
from jaxmeta.meta_updates.gradients import guarded_update, map_tasks
from jaxmeta.types import Params


class Cuts(Protocol):
    """How the trials of a minibatch are cut."""

    @property
    def minibatch_groups(self) -> int:
        """Blocks of trials that each minibatch takes as many trials from."""

    @property
    def trials_per_chunk(self) -> int | None:
        """Trials of a minibatch to work on at a time."""


class Settings(Cuts, Protocol):
    """The settings of a learner's passes over its trials."""

    @property
    def num_epochs(self) -> int:
        """Passes over a batch of trials."""

    @property
    def num_minibatches(self) -> int:
        """Gradient steps in a pass."""


class Counts(NamedTuple):
    """The divisors of the means in a minibatch's loss; each is at least 1."""

    steps: jax.Array
    """``[]``, int32: the minibatch's counted steps."""
    trials: jax.Array
    """``[]``, int32: the trials with a counted step."""


def counts(batch: Any) -> Counts:
    """The `Counts` of a minibatch with ``counted [B, T]`` (bool)."""

    def at_least_one(flags: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sum(flags, dtype=jnp.int32), 1)

    return Counts(at_least_one(batch.counted), at_least_one(jnp.any(batch.counted, axis=1)))


Losses = Callable[[Params, jax.Array, Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""``(params, keys [C], batch [C, T], hyper, whole) -> (loss [], report)``: the share that C trials have in the loss and
in the report of their minibatch. The shares of all chunks of a minibatch add up. ``whole`` is what ``of_whole`` says of the minibatch."""


def learn_in_epochs(
    key: jax.Array,
    learned: tuple[Params, Any],
    batch: Any,
    hyper: Any,
    *,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    config: Settings,
    of_whole: Callable[[Any], Any] = counts,
    replayed: Callable[[jax.Array], Any] | None = None,
) -> tuple[tuple[Params, Any], dict[str, jax.Array], jax.Array]:
    """``learned``, the parameters and the optimiser's state, after epochs of minibatches of ``batch``.

    Args:
        key: A key.
        learned: The parameters and the optimiser's state.
        batch: Trials ``[B, T]``, a tuple with ``counted``.
        hyper: The fourth argument of ``losses``.
        losses: The loss of some trials of a minibatch, with a key for each trial.
        optimizer: The optimiser.
        config: The numbers of epochs, minibatches, groups and chunks.
        of_whole: ``(minibatch) -> whole``, the last argument of ``losses``: numbers of a whole minibatch.
        replayed: ``(key) -> batch`` of older trials, drawn anew for each minibatch and learned from beside it. The
            devices do not share such a minibatch.

    Returns:
        ``(learned, reports, applied)``: the reports of all minibatches and whether each changed
        anything, with a leading ``[num_epochs, num_minibatches]``.

    Raises:
        ValueError: the settings do not fit the number of trials.
    """
    num_trials, groups = batch.counted.shape[0], config.minibatch_groups
    num_replayed = 0
    if replayed is not None:
        num_replayed = jax.eval_shape(replayed, key).counted.shape[0]
    said = f"num_tasks × num_streams = {num_trials}"
    check_trials(num_trials, config, said, num_replayed=num_replayed)
    size = num_trials // groups  # of a group
    devices = 1 if replayed is not None else math.gcd(groups, jax.device_count())

    def minibatch(learned: tuple, key_and_rows: tuple) -> tuple:
        params, optimizer_state = learned
        key, rows = key_and_rows
        # A trial's key depends on its number, not on its place among the good trials.
        numbers = rows + size * jnp.arange(groups, dtype=rows.dtype)[:, None]
        some = _Minibatch(key, batch, rows, numbers)
        any_new = jnp.any(taken(batch.counted, rows))
        if replayed is not None:
            some = _joined(some, replayed, num_trials)
        whole = of_whole(taken(some.trials, some.rows))
        gradient, report = _summed_gradient(
            lambda params, keys, trials: losses(params, keys, trials, hyper, whole),
            params,
            some,
            trials_per_chunk=config.trials_per_chunk,
            devices=devices,
        )
        norm = optax.tree.norm(gradient)
        applied = jnp.isfinite(norm) & any_new
        learned = guarded_update(optimizer, gradient, optimizer_state, params, apply=applied)
        return learned, (report | {"meta_grad_norm": norm}, applied)

    def epoch(learned: tuple, key: jax.Array) -> tuple:
        order_key, key = jax.random.split(key)
        rows = jnp.broadcast_to(jnp.arange(size), (groups, size))
        order = jax.random.permutation(order_key, rows, axis=1, independent=True)
        rows = jnp.swapaxes(order.reshape(groups, config.num_minibatches, -1), 0, 1)
        keys = jax.random.split(key, config.num_minibatches)
        return jax.lax.scan(minibatch, learned, (keys, rows))

    reports: dict[str, jax.Array]
    applied: jax.Array
    keys = jax.random.split(key, config.num_epochs)
    learned, (reports, applied) = jax.lax.scan(epoch, learned, keys)
    return learned, reports, applied


class _Minibatch(NamedTuple):
    """Some of the trials of a batch."""

    key: jax.Array
    """The minibatch's key."""
    trials: Any
    """The batch ``[B, T]``, in G groups of B / G trials."""
    rows: jax.Array
    """``[G, b]``: the minibatch's trials by their places in their groups."""
    numbers: jax.Array
    """``[G, b]``: their numbers, for their keys."""


def taken(trials: Any, rows: jax.Array) -> Any:
    """Some of ``trials [B, T]``, ``[G b, T]``: of each of G groups the ``rows [G, b]``. None leaves its group's block."""
    groups = rows.shape[0]
    if groups == 1:
        return jax.tree.map(lambda x: x[rows[0]], trials)

    def of_groups(x: jax.Array) -> jax.Array:
        some = jax.vmap(lambda x, rows: x[rows])(x.reshape(groups, -1, *x.shape[1:]), rows)
        return some.reshape(-1, *x.shape[1:])

    return jax.tree.map(of_groups, trials)


def _joined(some: _Minibatch, replayed: Callable, num_trials: int) -> _Minibatch:
    """A minibatch with replayed trials behind it. No trial of the ``num_trials`` has their keys."""
    drawn = replayed(jax.random.fold_in(some.key, num_trials))
    new = taken(some.trials, some.rows)
    trials = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), new, drawn)
    places = num_trials + 1 + jnp.arange(drawn.counted.shape[0], dtype=some.numbers.dtype)
    numbers = jnp.concatenate([some.numbers.reshape(-1), places])
    return _Minibatch(some.key, trials, jnp.arange(len(numbers))[None], numbers[None])


def _summed_gradient(
    losses: Callable[..., tuple[jax.Array, dict]],
    params: Params,
    some: _Minibatch,
    *,
    trials_per_chunk: int | None,
    devices: int,
) -> tuple[Params, dict[str, jax.Array]]:
    """``(gradient, report)`` of a minibatch: the sum over its chunks, and over the devices that share each."""

    def share(keys: jax.Array, trials: Any) -> tuple:
        (_, report), gradient = jax.value_and_grad(losses, has_aux=True)(params, keys, trials)
        return gradient, report

    def of_chunk(rows: jax.Array, numbers: jax.Array) -> tuple:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(some.key, numbers.reshape(-1))
        trials = taken(some.trials, rows)
        if devices == 1:
            return share(keys, trials)
        # Mapped over devices, and not over all trials at once, or the compiler would sum over devices at each time step.
        blocks = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), (keys, trials))
        return jax.vmap(share)(*blocks)

    groups, size = some.rows.shape
    if trials_per_chunk is None or trials_per_chunk == groups * size:
        total = of_chunk(some.rows, some.numbers)
    else:

        def chunks(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(groups, -1, trials_per_chunk // groups), 0, 1)

        def add(total: tuple, chunk: tuple) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, total, of_chunk(*chunk)), None

        places = chunks(some.rows), chunks(some.numbers)
        shapes = jax.eval_shape(of_chunk, *jax.tree.map(lambda x: x[0], places))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, places)
    return total if devices == 1 else _over_devices(total)


def _over_devices(total: Any) -> Any:
    """The sum of ``total [D]`` over devices. All leaves are in one row, so that one message carries them."""
    rows = jax.vmap(lambda x: ravel_pytree(x)[0])(total)
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], total))
    return unravel(jnp.sum(rows, axis=0))


def in_chunks(function: Callable[[Any], Any], trials: Any, *, trials_per_chunk: int | None) -> Any:
    """``function(trial)`` of each of ``trials [B]``, so many at a time; None is all at once."""
    if trials_per_chunk is None:
        return jax.vmap(function)(trials)
    return map_tasks(function, trials, tasks_per_chunk=trials_per_chunk)


def check_settings(config: Cuts) -> None:
    """Raises ValueError unless the groups and the chunks are possible with some number of trials."""
    checks.at_least("minibatch_groups", config.minibatch_groups, 1)
    if config.trials_per_chunk is None:
        return
    checks.at_least("trials_per_chunk", config.trials_per_chunk, 1)
    if config.trials_per_chunk % config.minibatch_groups:
        raise ValueError(
            f"trials_per_chunk={config.trials_per_chunk} must be a multiple of "
            f"minibatch_groups={config.minibatch_groups}: a chunk takes as many trials from each group"
        )


def check_trials(num_trials: int, config: Settings, said: str, *, num_replayed: int = 0) -> None:
    """Raises ValueError unless ``num_trials``, a number that is ``said`` in words, can be cut into minibatches and chunks.

    ``num_replayed`` trials are beside the new ones in each minibatch.
    """
    parts, name = config.num_minibatches, f"num_minibatches={config.num_minibatches}"
    if config.minibatch_groups > 1:
        parts *= config.minibatch_groups
        name += f" × minibatch_groups={config.minibatch_groups} = {parts}"
    if num_trials % parts:
        raise ValueError(f"{name} must divide the number of trials, {said}")
    size = num_trials // config.num_minibatches + num_replayed
    if config.trials_per_chunk is not None and size % config.trials_per_chunk:
        more = f" + replayed_trials={num_replayed}" if num_replayed else ""
        raise ValueError(
            f"trials_per_chunk={config.trials_per_chunk} must divide the trials of a minibatch, "
            f"{num_trials} / num_minibatches={config.num_minibatches}{more} = {size}"
        )


def check_shared(config: Cuts, num_devices: int) -> None:
    """Warns unless the groups let ``num_devices`` devices share learning."""
    if config.minibatch_groups % num_devices:
        warnings.warn(
            f"minibatch_groups={config.minibatch_groups} is no multiple of the {num_devices} devices: they share acting, "
            f"and each learns from all trials. With minibatch_groups={num_devices} they share learning, too",
            stacklevel=2,
        )


types.document_fields()
