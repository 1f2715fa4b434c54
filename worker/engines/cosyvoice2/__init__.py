"""CosyVoice 2 (arXiv:2412.10117): many sessions of one device, streamed and batched."""
