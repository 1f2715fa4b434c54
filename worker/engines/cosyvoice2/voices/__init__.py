"""Voices: recordings, and what the model is told of them."""
