"""A voicepack's files: reading, checking, converting and inventing them."""
