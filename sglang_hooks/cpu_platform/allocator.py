"""Keep freed memory in the process.

Target: glibc's malloc, through `mallopt`. Why: a prefill allocates and frees tensors of several MB in every
layer; by default each comes fresh from the kernel, and its page faults cost as much as the arithmetic on it.
How: no mmap for large blocks, no return of the heap's top. Remove when: never; a no-op with another libc.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Ask glibc for it; silently does nothing elsewhere."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)
