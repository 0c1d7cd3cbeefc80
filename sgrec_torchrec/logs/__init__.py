"""Interaction logs: raw tables -> canonical Parquet -> a prepared split -> batches.

Reads what ``importers`` take; writes a canonical log (``canonical``), cuts it into
train, valid and test (``split``), measures it to fill in settings (``measure``) and
feeds it to training and evaluation as KeyedJaggedTensors (``stream``).
"""
