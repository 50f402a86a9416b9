"""jaxmeta: meta-reinforcement learning as pure functions in JAX."""

import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmeta.runs.experiments import load as load
    from jaxmeta.runs.experiments import pretrained as pretrained

__version__ = "0.2.0"
_FROM_EXPERIMENTS = ("load", "pretrained")
MISCOMPILES = "0.10.2"
"""A release of jax that compiles some programs wrongly on CPUs."""

if metadata.version("jax") == MISCOMPILES:
    warnings.warn(
        f"jax {MISCOMPILES} compiles some programs wrongly on CPUs: numbers may be wrong without a word. Install another "
        'release: pip install "jax>=0.10.1,!=0.10.2,<0.12"',
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `import jaxmeta.tasks` should not have to wait for training and checkpoints.
    if name in _FROM_EXPERIMENTS:
        from jaxmeta.runs import experiments

        return getattr(experiments, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
