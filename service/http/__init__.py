"""HTTP: requests, answers and refusals."""
