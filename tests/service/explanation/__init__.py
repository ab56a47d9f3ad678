"""Tests of `service.explanation`."""
