"""Parts of the chaos bench: a fleet under faults, its clients, a judge of what they heard."""
