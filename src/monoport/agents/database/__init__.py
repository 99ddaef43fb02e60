"""The agent beside databases: one engine per protocol, and what every engine needs.

Belongs here: `agent` (who may use which registered database), `conversation` (the audited relay), `certificates` (what
is shown to real servers), `engine` (the shape of an engine), and the engines themselves, one module each.
"""
