"""`make test-faults`: a real server, and what may happen to it; what must hold afterwards."""
