"""Stage 2, the item graph: reads a prepared log, writes sparse item-to-item weights.

The log's pairs are counted once (``pair_counts``). Weighed as co-visits
(``covisitation``) they become, with text similarity (``text``), one CSR graph
(``graph``), whose form ``choose`` picks on the valid rows. The graph is a baseline that
a generator must beat and a source of embeddings.
"""
