"""A model checker: explores every order of steps of small fleets, with the real scripts and server.

=============  =====================================================================
module         what is in it
=============  =====================================================================
fleets         what is explored: requests, workers, and how many faults a path has
state          a fleet and its server as one value
world          everything that may happen next: ``intake``, ``turns``, ``faults``
tasks          what a job does after each reply; its outbox (``outboxes``) is the real one
calls          what workers ask of the server: the same calls as theirs, as values
server         the real server as a function: values of keys and a call -> new values, reply
checked_fleet  executes calls, and checks each change against the ``invariants``
search         breadth first to exhaustion; then whether the fleet can finish from each state
breakages      scripts broken on purpose, each of which must be noticed
=============  =====================================================================

The model leaves out time: heartbeats, deadlines and timeouts may come at any moment, or never. It
leaves out the expiry of keys, text streams, pauses, stops and interrupts, resume points and
engines (a frame is its request and its number), several models, Clusters, and workers that come
back under their old name. Calls of one worker on its shared connection may overtake each other,
unless one was cancelled for the next. The reconciliation of pending lists is one step. After a
failover, nothing arrives that was on its way.
"""
