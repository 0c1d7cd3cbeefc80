"""What a judge is asked: aspects, histories and candidates as prompts.

Reads a split log, writes ``prompt.UserPrompt``; needs no LLM stack.
"""
