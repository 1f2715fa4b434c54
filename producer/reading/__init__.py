"""Reading of sessions' audio streams: entry by entry, across lost connections, without a gap."""
