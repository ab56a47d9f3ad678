"""`make test-faults`: what a real server must survive."""
