"""Shared by all of training: errors, progress bars, storage, threads."""
