"""The one style sheet of the pages, and its hash for the content security policy.

Belongs here: reading style.css once. It is put inside each page, so that a page is one answer and loads nothing.
"""

import base64
import hashlib
from importlib import resources

STYLE = resources.files(__package__).joinpath("style.css").read_text("utf-8")
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")
