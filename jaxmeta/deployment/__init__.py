"""A trained agent in one real task, outside of jax: `Session`."""

from jaxmeta.deployment.session import Session

__all__ = ["Session"]
