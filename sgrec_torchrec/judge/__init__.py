"""Stage 4, judge: reads histories and candidates, writes aspect scores and rewards."""
