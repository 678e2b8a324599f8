"""Agents: models that call tools, read what comes back, and are taught by the end of it (report, "Agentic RL").

In the order of reading: `calls` (the words of a call and of its result), `environment` (whose methods are the tools),
`trajectory` (an episode token by token, and which tokens are learnt), `sandbox` (where a model's code runs).
"""
