"""The official CosyVoice 2 package as an engine: the baseline of our own engine's benchmarks."""
