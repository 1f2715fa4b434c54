"""The models in memory: which engine speaks each, and how many turns at once."""
