"""Meta-learning algorithms, one a file."""

from types import ModuleType

from jaxmeta.algorithms import maml

ALGORITHMS: dict[str, ModuleType] = {"maml": maml}
"""Modules by name: each has ``Config``, ``Hyper`` and a constructor of the module's own name."""
