"""Stage 4, item tokens: gives every item L codes, its semantic ID.

Reads the catalogue of a split log and the item graph; writes tokens.parquet,
codebook.safetensors and a quality report. ``PrefixTrie`` turns the codes into tensors
that say which code may follow which.
"""
