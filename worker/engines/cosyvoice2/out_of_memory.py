"""Which errors mean that memory ran out: a turn fails of it, and the engine goes on.

Everything else that a device or a compiler raises is a fault. After an illegal access, for
instance, nothing works any more on that device, and the engine has to end.
"""

import torch

_TYPES = (torch.OutOfMemoryError, MemoryError)
"""What torch's CUDA allocator raises, and what Python and numpy raise."""

_GENERAL: tuple[type, ...] = (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError))
"""Types that tell nothing by themselves (the second came with torch 2.8). What else derives from
RuntimeError is a fault of another kind: ``NotImplementedError``, and what compilers raise."""

_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",  # pinned memory, a graph, a context
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",  # its name since cuDNN 9, and on the GPU
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUFFT_ALLOC_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the host or the device has no memory left."""
    if isinstance(error, _TYPES):
        return True
    said = str(error)
    return type(error) in _GENERAL and any(message in said for message in _MESSAGES)
