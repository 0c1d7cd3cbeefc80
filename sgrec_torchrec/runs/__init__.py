"""Runs as a whole: what is prepared once, and the row of processes from log to report.

``prepare`` makes or reuses a run's stages; ``open_run`` makes the model of them, and
reads its trained weights. ``pipeline`` goes from import to report, ``closed_loop`` in
rounds; ``steps`` does a row of commands, each once.
"""
