"""First bytes and a table in, one closed outcome out, and the explanation of it.

Belongs here: which handler and which TLS a connection gets. Does not: reading, handshakes, certificates, permits.
"""
