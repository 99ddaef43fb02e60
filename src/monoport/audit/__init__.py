"""What happened, kept so that nothing acknowledged is lost.

Belongs here: events, the spool on disk, the log that code writes to. Does not: diagnostics for developers (structlog).
"""
