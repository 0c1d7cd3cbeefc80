"""The recommender behind HTTP: reads a run or a package, answers requests over JSON.

``process.serve`` is ``sgrec serve``: it loads, binds and stops. A request passes
``limits`` (size, time, token), ``wire`` (JSON -> fields), ``checks`` (fields -> a job)
and ``batching`` (jobs of many users -> one pass of the network).
"""
