"""A trained agent in one real task, outside of jax: `Session`."""

from jaxmeta import types
from jaxmeta.deployment.session import Session

__all__ = ["Session"]

types.document_fields()
