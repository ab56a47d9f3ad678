"""Base model and rows → a checkpoint, with the Hugging Face Trainer."""
