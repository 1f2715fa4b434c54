"""Voices: reference recordings, and the model inputs made of them."""
