"""monoport: an identity-aware access proxy that serves a whole cluster on one TLS port."""

__version__ = "0.1.0"
