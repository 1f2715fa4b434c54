"""A model without Redis: one text, a trial of its capacity, or an adapter for one process."""
