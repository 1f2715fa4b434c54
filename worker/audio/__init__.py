"""Streaming audio: loudness, resampling, limiting, framing."""
