"""Prometheus metrics of the service: their definitions, and the table of them for the docs."""

from service.metrics.definitions import METRICS, metrics_table

__all__ = ["METRICS", "metrics_table"]
