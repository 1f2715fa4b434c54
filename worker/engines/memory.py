"""Return the memory of an unloaded model to the operating system."""

import ctypes
import gc


def release() -> None:
    """Collect garbage and trim the heap: glibc alone keeps most of what was freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
