"""The synthetic engine: a tone for each word, for tests and trials without a model."""
