"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

The only package with `jit`, files and signals.
"""
