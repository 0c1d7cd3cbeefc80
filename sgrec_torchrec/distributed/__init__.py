"""Support for many processes: launch, sharding, optimizers, checkpoints, progress.

Reads a module and the environment of ``torchrun``; writes checkpoints.
Knows nothing of logs, items or models.
"""
