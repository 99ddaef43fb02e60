"""Who is calling, and what that identity may reach. Pure: bytes and values in, values out.

Belongs here: identities read from certificates, resource documents, role evaluation, permits, leases.
Does not: fetching roles or certificates (auth), sockets, clocks that are not parameters.
"""
