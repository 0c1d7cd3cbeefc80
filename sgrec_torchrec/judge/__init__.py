"""Stage 7, judge: reads histories and candidates, writes aspect scores and rewards."""
