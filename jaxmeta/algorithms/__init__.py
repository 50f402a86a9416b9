"""Meta-learning algorithms, one a file."""

from types import ModuleType

from jaxmeta.algorithms import (
    es,
    imaml,
    learned_objective,
    maml,
    maml_trpo,
    meta_actor_critic,
    meta_gradient,
    meta_q,
    meta_value,
    promp,
    reptile,
    rl2,
    varibad,
)

ALGORITHMS: dict[str, ModuleType] = {
    "es": es,
    "imaml": imaml,
    "learned_objective": learned_objective,
    "maml": maml,
    "maml_trpo": maml_trpo,
    "meta_actor_critic": meta_actor_critic,
    "meta_gradient": meta_gradient,
    "meta_q": meta_q,
    "meta_value": meta_value,
    "promp": promp,
    "reptile": reptile,
    "rl2": rl2,
    "varibad": varibad,
}
"""Modules by name: each has ``Config``, ``Hyper`` and a constructor of the module's own name."""

__all__ = [
    "ALGORITHMS",
    "es",
    "imaml",
    "learned_objective",
    "maml",
    "maml_trpo",
    "meta_actor_critic",
    "meta_gradient",
    "meta_q",
    "meta_value",
    "promp",
    "reptile",
    "rl2",
    "varibad",
]
