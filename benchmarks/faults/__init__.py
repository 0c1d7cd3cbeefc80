"""The fault campaign: what is broken on purpose, and what has to come of it."""
