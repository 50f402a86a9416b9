"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

The only package with `jit`, files and signals.
"""

from jaxmeta.runs import (
    checkpoints,
    claims,
    experiments,
    presets,
    processes,
    records,
    reports,
    sinks,
    terminal,
    training,
)

__all__ = [
    "checkpoints",
    "claims",
    "experiments",
    "presets",
    "processes",
    "records",
    "reports",
    "sinks",
    "terminal",
    "training",
]
