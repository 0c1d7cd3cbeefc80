"""Files of any stage: their names, whole writes, arrays, metrics, origin of a result.

Reads and writes what it is given; knows nothing of ranks, logs or models.
"""
