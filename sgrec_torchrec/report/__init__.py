"""Stage 11, report: reads a run or a judged folder, writes one HTML file.

``run_page`` is the page of a run, ``judge_page`` that of judgements; ``judged_folder``
reads for both what the judge wrote. Tables and pictures are shared.
"""
