"""Watch a session's keys for changes: its control value, its lease, its streamed text."""
