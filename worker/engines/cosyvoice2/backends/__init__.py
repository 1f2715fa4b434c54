"""Optional backends: vLLM, TensorRT, ``torch.compile``."""
