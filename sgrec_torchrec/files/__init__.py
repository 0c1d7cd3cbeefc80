"""Files of any stage: whole or absent writes, arrays, metrics, where a result is from.

Reads and writes what it is given; knows nothing of ranks, logs or models.
"""
