"""What is kept of answers and feedback, by switch: the input of `monitoring`."""
