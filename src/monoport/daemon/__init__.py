"""The daemon: builds the services a configuration names, binds handlers and engines, starts and drains them.

Belongs here: composition and process life. Does not belong here: what any of the services do.
"""
