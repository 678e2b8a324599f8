"""Reward and distillation on many processes: who answers which prompts, and what all have to know of it."""
