"""Requests into turns: the queue's reader, the backlog's keeper, and each request's job."""
