"""Stage 10, evaluation: reads top-k lists and targets, writes metric tables.

``ranking`` gives HR and NDCG with intervals, ``beyond`` what else a list should be
judged by, ``baselines`` the systems to beat, ``compare`` paired tests of two runs.
"""
