"""One turn made into frames: text to the engine, samples through the audio chain."""
