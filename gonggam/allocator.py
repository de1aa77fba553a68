"""How the C library hands out memory to this process."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEPT, _LARGE = 1 << 30, 1 << 28


def keep_freed_memory() -> None:
    """Let glibc use freed memory again, rather than give it back and ask for it anew at every step of training.

    What the kernel hands out it first fills with zeros, page by page, and a step on a processor waits for that.
    Blocks of 256 MiB and more still go back at once, and free memory above 1 GiB. Does nothing where the user has set
    malloc's variables, or where the C library is another.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
