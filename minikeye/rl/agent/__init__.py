"""Agents: models that call tools, read what comes back, and are taught by the end of it (report, "Agentic RL").

In the order of reading: `environment` (whose methods are the tools), `trajectory` (an episode token by token, and which
tokens are learnt), `reading` (passes over trajectories), `imitate` (a short imitation first), `learn` (from reward);
then four environments, `code`, `shop`, `search` and `look`. Calls and the sandbox are in `inference.calling`.
"""
