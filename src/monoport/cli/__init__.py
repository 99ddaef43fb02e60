"""The commands: parse arguments, call, print.

Belongs here: click commands and what turns values into text. Decisions belong to the rooms below.
"""
