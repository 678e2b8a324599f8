"""Agents: four families of environments, how a policy is taught in each, and what it then can."""
