"""jaxmeta: meta-reinforcement learning as pure functions in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmeta.experiments import load, pretrained

__version__ = "0.1.0"
__all__ = ["load", "pretrained"]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `import jaxmeta.tasks` should not have to wait for training and checkpoints.
    if name in __all__:
        from jaxmeta import experiments

        return getattr(experiments, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
