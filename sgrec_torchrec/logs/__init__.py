"""Stage 1, logs: reads raw tables, writes a prepared split, and batches of it.

``importers`` take what users have and write a canonical log (``canonical``), ``split``
cuts it into train, valid and test, ``measure`` fills in settings by what it finds, and
``stream`` feeds training and evaluation with KeyedJaggedTensors.
"""
