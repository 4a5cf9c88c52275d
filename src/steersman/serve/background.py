"""For the threads beside the event loop: way to it, and the memory that versions leave behind."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable


def give_way() -> None:
    """Let this thread work only when nothing else wants the processor."""
    if sys.platform == "linux":
        # A thread's own priority exists on Linux only; elsewhere the whole process would become slow.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def give_back() -> None:
    """Give what the C library keeps of freed memory to the system: half of a process that swaps large models."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
