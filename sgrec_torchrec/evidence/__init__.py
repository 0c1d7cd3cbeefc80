"""Stage 3, evidence: reads a log and its catalogue, writes relations and a scorer.

``relations`` keeps several sparse item-to-item weights, ``gather`` looks up what they
say of a history's candidates, ``held_out`` does so for train rows that the relations
have not seen, ``scorer`` learns from those how to weigh it all into a next-item
distribution: the prior that the beam mixes with the network.
"""
