"""Memory that a CPU step frees stays with the process."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h) and what they are set to: never trim the heap, never map blocks one by one.
_KEEP = {-1: -1, -4: 0}


def keep_freed_memory() -> None:
    """Let the process reuse freed memory instead of returning it to the system (glibc on Linux; elsewhere nothing).

    A training step allocates the same tens of megabytes over and over. As glibc comes, whether they go back to the
    system in between, to be cleared page by page when next asked for, is a matter of luck with the heap's layout.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        for parameter, value in _KEEP.items():
            mallopt(parameter, value)
