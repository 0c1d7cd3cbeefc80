"""Models that answer prompts: one protocol, three implementations.

Reads ``judge.ask.prompt.UserPrompt``, writes level distributions or JSON. Each
backend imports its own stack when it is made, never earlier.
"""
