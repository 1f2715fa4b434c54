"""Redis connections that producer and worker share. Knows keys and bytes, not turns."""
