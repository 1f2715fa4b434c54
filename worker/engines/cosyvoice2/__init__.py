"""CosyVoice 2 (arXiv:2412.10117): many turns on one device, streamed and batched."""
