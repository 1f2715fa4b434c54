"""Queues, sessions and backlogs in Redis: the Lua scripts, their typed calls, the stores."""
