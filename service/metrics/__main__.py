"""Print all metrics as a table in Markdown: `python -m service.metrics`."""

from service.metrics import metrics_table

if __name__ == "__main__":
    print(metrics_table())  # noqa: T201
