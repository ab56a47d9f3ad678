"""A bento → a container image, built and tried."""
