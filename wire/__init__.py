"""Redis connections for producer and worker: URLs, topologies, links. Knows bytes, not turns."""
