"""Recipe keys: YAML and command line → typed arguments."""
