"""What voicefleet promises about speed, measured: ``python -m bench`` (``make bench``).

Each bench starts an embedded server and a worker process of its own, asks of them what an
orchestrator would ask, and reports figures with their targets beside them.
"""
