"""Morse code as an engine of voicefleet."""
