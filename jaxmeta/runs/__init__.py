"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

The only package with `jit`, files and signals. Its modules are imported one by one: a script that only needs `reports`
should not wait for checkpoints.
"""

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
