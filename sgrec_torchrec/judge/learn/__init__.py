"""How a judge is trained: labels, supervision, GRPO, the users' weights.

Reads a split log and labels, writes a judge's folder and what each stage adds.
"""
