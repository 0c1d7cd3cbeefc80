"""Stage 5, the generator: reads batches and item tokens, writes a trained model.

A decoder-only model of semantic IDs. From jagged batches of histories
(``logs.token_batch.TokenBatch``) and a prefix trie, pretraining makes a sharded model,
and beam search or sampling items with their log-probabilities. Model files know nothing
of sharding; only ``pretrain`` and ``trainee`` do.
"""
