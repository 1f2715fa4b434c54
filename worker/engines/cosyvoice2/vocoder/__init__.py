"""The vocoder: mel frames to samples."""
