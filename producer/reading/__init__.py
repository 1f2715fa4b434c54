"""A session's audio stream, read entry by entry without a gap."""
