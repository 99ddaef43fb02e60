"""The data plane: reactor, listener, streams, TLS, relay, HTTP over a stream.

Belongs here: moving bytes and ending connections. Does not belong here: deciding where a connection goes
(`routing`), who may use it (`access`), or what the bytes mean (`wire`, the handlers of `proxy` and `agents`).
"""
