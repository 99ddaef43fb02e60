"""The garbage collector's part in the data plane.

Belongs here: its settings for a process that serves connections. Does not belong here: anything else about memory.
"""

from __future__ import annotations

import gc

# A connection makes some sixty tracked objects, nearly all freed by their reference counts. The default of 700 would
# have the collector look through them every dozen connections, in vain.
THRESHOLDS = (20_000, 20, 50)


def settle() -> None:
    """Leave everything made so far out of future collections; call once, when the process is ready to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
