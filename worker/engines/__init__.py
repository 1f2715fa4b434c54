"""Speech engines behind one small protocol."""
