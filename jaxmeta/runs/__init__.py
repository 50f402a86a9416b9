"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

This is the only package that uses `jit`, files and signals.
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
