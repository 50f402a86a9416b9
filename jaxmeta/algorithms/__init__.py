"""Meta-learning algorithms, one a file."""

from types import ModuleType

from jaxmeta.algorithms import es, imaml, maml, maml_trpo, promp, reptile, rl2, varibad

ALGORITHMS: dict[str, ModuleType] = {
    "es": es,
    "imaml": imaml,
    "maml": maml,
    "maml_trpo": maml_trpo,
    "promp": promp,
    "reptile": reptile,
    "rl2": rl2,
    "varibad": varibad,
}
"""Modules by name: each has ``Config``, ``Hyper`` and a constructor of the module's own name."""
