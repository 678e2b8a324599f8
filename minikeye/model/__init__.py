"""The network of the report's section 2, from rotary positions up to the next token's logits (keye.py)."""
