"""The web of the one port: API and pages."""
