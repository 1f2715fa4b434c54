"""Other software behind the engine's own interfaces: vLLM, TensorRT, ``torch.compile``."""
