"""A segment's text to text tokens."""
