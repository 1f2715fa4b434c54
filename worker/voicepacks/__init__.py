"""Voicepacks: a model's metadata and files, and the hubs that files come from."""
