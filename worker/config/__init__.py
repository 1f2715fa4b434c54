"""A worker's configuration: its sections, and how it is read and checked."""
