"""Generative recommendation on TorchRec, supervised by an offline semantic judge.

Reads interaction logs, writes a trained, evaluated generator of semantic item IDs.
The folders are the data flow: logs, item_graph, item_tokens, generator, evaluation.
"""
