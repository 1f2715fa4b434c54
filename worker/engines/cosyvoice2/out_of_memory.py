"""Tells errors that mean "out of memory" from other faults of a device.

Out of memory fails one turn, and the engine continues. After other faults, such as an illegal
memory access, nothing works on that device any more, and the engine has to end.
"""

import torch

_TYPES = (torch.OutOfMemoryError, MemoryError)
"""Raised by torch's CUDA allocator; by Python and NumPy."""

_GENERAL: tuple[type, ...] = (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError))
"""Types whose message decides (the second came with torch 2.8). Other subclasses of RuntimeError,
``NotImplementedError`` and those of compilers, never mean out of memory."""

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
    text = str(error)
    return type(error) in _GENERAL and any(message in text for message in _MESSAGES)
