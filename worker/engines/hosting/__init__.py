"""Runs any engine in a child process.

A GPU engine's launch loop holds the interpreter lock, a hung device call cannot be stopped from
within its process, and device memory is surely freed only when the process ends. So the worker
keeps the event loop that talks to Redis, and a child process owns the device.
"""
