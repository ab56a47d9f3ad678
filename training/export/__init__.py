"""Checkpoint → ONNX → candidates → gates → a calibrated package."""
