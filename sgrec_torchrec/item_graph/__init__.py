"""Stage 2, the item graph: reads a prepared log, writes sparse item-to-item weights.

Co-visitation counts (``covisitation``) and text similarity (``text``) become one CSR
graph (``graph``), whose form ``choose`` picks on the valid rows. The graph is a
baseline that a generator must beat and a source of embeddings.
"""
