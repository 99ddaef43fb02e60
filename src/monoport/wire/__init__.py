"""Codecs of the wire formats, one file per protocol: bytes in, values out, no I/O."""
