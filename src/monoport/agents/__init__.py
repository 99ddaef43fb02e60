"""Beside the resource: what serves a dial request that came through the tunnel."""
