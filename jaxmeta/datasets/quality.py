"""How good a dataset is: what its learners earn as they learn, and how much of the tasks they see."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks, evaluation
from jaxmeta.datasets.histories import Histories, check
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Trajectory


class Quality(NamedTuple):
    """Figures of a dataset, means over its histories."""

    returns: np.ndarray
    """``[E]``, the return of each episode, in the order in which they were lived."""
    random: float
    """The return of random actions in the same tasks."""
    reference: float
    """The return that counts as 1: the optimal return, or the expert's."""
    coverage: float
    """The share of the observations found by any learner of a task that a single history holds, from 0 to 1."""
    skipped: int = 0
    """Histories with a number that is not finite. They are left out."""

    @property
    def normalized(self) -> np.ndarray:
        """``[E]``, the returns on a scale on which random actions are 0 and the reference is 1."""
        return (self.returns - self.random) / (self.reference - self.random)

    def table(self) -> str:
        """The figures as a Markdown table."""
        tenth = max(len(self.returns) // 10, 1)
        first, last = self.returns[:tenth].mean(), self.returns[-tenth:].mean()
        scaled = self.normalized[:tenth].mean(), self.normalized[-tenth:].mean()
        rows = [
            ("first tenth of the episodes", f"{first:.3f}", f"{scaled[0]:.2f}"),
            ("last tenth", f"{last:.3f}", f"{scaled[1]:.2f}"),
            ("random", f"{self.random:.3f}", "0"),
            ("reference", f"{self.reference:.3f}", "1"),
            ("coverage", f"{self.coverage:.2f}", ""),
        ]
        lines = ["| | return | normalised |", "|---|---|---|"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


@checks.arguments
def quality(key: jax.Array, histories: Histories, *, family: TaskFamily) -> Quality:
    """The returns by episode, their scale, and the coverage of ``histories``.

    Episodes that end in fewer than half of the histories, and episodes that a restart cut off, are left out of
    ``returns``. Observations count as equal if they
    agree to four decimals. Histories with a number that is not finite are left out and counted.

    Raises:
        ValueError: the family has no reference return; no episode ends; arrays of ``histories`` do not fit together.
    """
    check(histories)
    random_key, reference_key = jax.random.split(key)
    tasks, data = histories.tasks, jax.tree.map(jnp.asarray, histories.data)
    broken = ~_finite(histories.data, np.asarray(histories.length))
    # A broken history counts as one without steps.
    length = np.where(broken, 0, np.asarray(histories.length))
    returns = _returns_by_episode(data, jnp.asarray(length))
    return Quality(
        returns=returns,
        random=_mean(evaluation.random_returns(random_key, tasks, family=family)),
        reference=_mean(evaluation.reference_returns(reference_key, tasks, family=family)),
        coverage=_coverage(np.asarray(data.timestep.obs), length),
        skipped=int(np.sum(broken)),
    )


def _finite(data: Trajectory, length: np.ndarray) -> np.ndarray:
    """The histories whose numbers are finite up to their ``length``, bool ``[M, N]``."""
    after = np.arange(data.reward.shape[2]) >= length[..., None]
    good = np.ones(length.shape, bool)
    for x in map(np.asarray, jax.tree.leaves(data._replace(memory=()))):
        finite = np.all(np.isfinite(x.reshape(*after.shape, -1)), axis=-1)
        good &= np.all(finite | after, axis=-1)
    return good


def _mean(returns: Any) -> float:
    return float(np.nanmean(np.asarray(returns)))


def _returns_by_episode(data: Trajectory, length: jax.Array) -> np.ndarray:
    """The mean return of each episode that ends in at least half of the histories, ``[E]``."""
    given = (data.reward, data.last, data.timestep.first)
    arrays = [np.asarray(x).reshape(-1, x.shape[-1]) for x in given]
    every = []
    for reward, last, first, end in zip(*arrays, np.asarray(length).reshape(-1), strict=True):
        if not end:
            continue
        pieces = np.split(np.arange(end), np.flatnonzero(first[:end])[1:])
        # A restart cuts an episode off: it has no last step, and no return.
        every.append([reward[piece].sum() for piece in pieces if last[piece[-1]]])
    number = sorted(map(len, every))[len(every) // 2] if every else 0
    if not number:
        raise ValueError("histories holds no episode that ends: give longer ones")
    return np.asarray([np.mean([x[e] for x in every if len(x) > e]) for e in range(number)])


def _coverage(obs: np.ndarray, length: np.ndarray) -> float:
    """The mean share of a task's distinct observations that one of its histories holds."""
    shares = []
    for rows, ends in zip(obs.reshape(*obs.shape[:3], -1), length, strict=True):
        each = [
            np.unique(np.round(x[:end], 4), axis=0)
            for x, end in zip(rows, ends, strict=True)
            if end
        ]
        if not each:
            continue
        every = np.unique(np.concatenate(each), axis=0)
        shares += [len(x) / len(every) for x in each]
    return float(np.mean(shares))
