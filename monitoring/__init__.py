"""Production → what has changed, and what to label next."""
