"""Champion against challenger on the same rows."""
