"""What compares arms, seeds and peers: reads named runs, writes tables of figures.

``seeds`` trains one run over several seeds beside baselines and a peer, ``fusions``
post-trains under each fusion from the same weights, ``measure_export`` ranks with a run
and its package. ``benchmarks/`` measures speed; here it is quality.
"""
