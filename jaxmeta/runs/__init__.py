"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

This is the only package that uses `jit`, files and signals. Its modules are imported one by one: a
script that needs `reports` alone does not wait for checkpoints.
"""

__all__ = [
    "checkpoints",
    "claims",
    "experiments",
    "metric_lines",
    "presets",
    "processes",
    "records",
    "reports",
    "run_folder",
    "sinks",
    "terminal",
    "training",
]
