"""Where the auth service keeps what must survive: one key-value interface, its backends, nothing of its own meaning.

Belongs here: the interface and one file per backend. Does not: what keys and values mean (auth), audit events (audit).
"""
