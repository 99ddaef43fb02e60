"""The front door: one connection's life, and a handler per kind of route.

Belongs here: what stands behind the listening port. Does not belong here: beside-the-resource work (`agents`).
"""
