"""An engine in a process of its own, whatever engine it is.

A GPU engine's launch loop holds the interpreter, a hung device call cannot be stopped from inside,
and device memory comes back for certain only when a process ends. So the worker keeps the loop
that listens to Redis, and a child process keeps the device.
"""
