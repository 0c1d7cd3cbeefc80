"""Stage 11, report: reads a run or a judged folder, writes one HTML file.

``run_page`` is the page of a run, ``judge_page`` that of judgements; tables and
pictures are shared.
"""
