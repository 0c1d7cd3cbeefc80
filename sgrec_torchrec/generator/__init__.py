"""The decoder-only generator of semantic IDs.

Reads jagged batches of histories (``logs.token_batch.TokenBatch``) and a prefix trie;
writes, by pretraining, a sharded model, and by beam search or sampling, items with
their log-probabilities. Model files know nothing of sharding; only ``pretrain`` and
``trainee`` do.
"""
