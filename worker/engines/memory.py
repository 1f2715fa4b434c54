"""Memory that a model leaves behind."""

import ctypes
import gc


def release() -> None:
    """Give freed memory back to the system; without this glibc keeps most of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
