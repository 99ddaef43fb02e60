"""PostgreSQL's frontend/backend protocol 3.0 to 3.2, without I/O.

Belongs here: `messages` (bytes of single messages), `front` (the opening, as the proxy reads it), `statements` (what
a client runs, for the audit log), `backend` (the server's opening, as the agent reads it).
"""
