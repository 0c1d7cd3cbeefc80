"""Stage 6, candidates: reads a trained run, writes the pairs for a judge.

``draw`` draws live users and their rollouts, ``items`` picks each user's items and
writes the folder.
"""
