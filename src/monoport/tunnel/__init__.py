"""Reverse tunnels: the agent's end, the proxy's end, and what both say first on a dialled stream."""
