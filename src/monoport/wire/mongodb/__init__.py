"""MongoDB's wire protocol, without I/O.

Belongs here: `bson` (documents, one level at a time), `messages` (OP_MSG and the older ones), `commands` (which
databases a command may touch), `hello` and `replies` (what goes back to a client), `front` (the opening, as the proxy
reads it). How an agent proves a password to a server that wants one is `wire/scram`.
"""
