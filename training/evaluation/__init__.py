"""Package and labeled rows → metrics, significance, behavior tests, the report."""
