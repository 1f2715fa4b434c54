"""The language model: text tokens to speech tokens."""
