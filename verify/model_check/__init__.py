"""An exhaustive exploration of small fleets that run the real scripts on a real server.

========== ============================================================================
module     what is in it
========== ============================================================================
fleets     what is explored: requests, workers, and how much may go wrong on one path
state      a fleet and its server as one value
world      everything that may happen next: ``intake``, ``turns``, ``faults``
tasks      what an job does next, given a reply; its outbox (``outboxes``) is the real one
calls      what workers ask of the server: the only place that knows KEYS and ARGV
server     a real server as a function: values of keys, and a call -> new values, reply
ground     looking and doing; each change is checked against ``promises``
search     breadth first to exhaustion, and whether the fleet can finish from every state
breakages  broken scripts, each of which must be found out
========== ============================================================================

What the model leaves out. Time: heartbeats, deadlines and timeouts may come at any moment, or
never. Expiry of keys. Text streams, pauses, stops and interrupts. Resume points and engines: a
frame is its request and its number. Several models, Clusters, and workers that come back under
their old name. Calls of one worker on its shared connection may overtake each other, except where
one was cancelled for the next; the reconciliation of pending lists is one step. After a failover
nothing that was on its way arrives.
"""
