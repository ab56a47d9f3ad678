"""Texts in, answers out, for many callers at once. Plain Python, without BentoML and HTTP."""
