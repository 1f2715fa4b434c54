"""Publishing: the outbox of each turn, paced to real time, and the publisher of all of them."""
