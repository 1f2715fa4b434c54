"""A voicepack's files: reading, checking, converting, and writing packs of random weights."""
