"""Texts in, answers out, for many callers at once; plain Python, without BentoML and HTTP."""
