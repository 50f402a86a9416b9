"""Meta-learning algorithms, one a file."""

from types import ModuleType

from jaxmeta.algorithms import es, imaml, maml, maml_trpo, promp, reptile

ALGORITHMS: dict[str, ModuleType] = {
    "es": es,
    "imaml": imaml,
    "maml": maml,
    "maml_trpo": maml_trpo,
    "promp": promp,
    "reptile": reptile,
}
"""Modules by name: each has ``Config``, ``Hyper`` and a constructor of the module's own name."""
