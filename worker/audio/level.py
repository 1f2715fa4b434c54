"""Decibels and amplitude ratios."""

import math


def linear(db: float) -> float:
    """Decibels as an amplitude ratio."""
    return math.pow(10.0, db / 20.0)


def decibels(ratio: float) -> float:
    """An amplitude ratio in decibels."""
    return 20.0 * math.log10(ratio) if ratio > 0.0 else -math.inf
