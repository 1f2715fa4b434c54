"""What Redis keeps of queues, sessions and workers, as calls of scripts."""
