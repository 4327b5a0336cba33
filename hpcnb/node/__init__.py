"""On each node: the agent, the template that ranks are forked from, and what the agent knows of its ranks."""
