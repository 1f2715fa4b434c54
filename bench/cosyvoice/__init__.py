"""What the benchmarks of the CosyVoice 2 engine are made of: alone and in a fleet."""
