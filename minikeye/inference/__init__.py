"""Answers: generating token by token, by CUDA graphs, as text while it comes, in a conversation."""
