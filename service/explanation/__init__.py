"""Why this answer: the words of a text that decide, by what their absence changes."""
