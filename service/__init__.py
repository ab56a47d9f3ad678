"""The part of Whetstone that ships: package → predictions → HTTP. No torch, no transformers."""

import os

# ONNX Runtime's official builds send usage data to Microsoft otherwise (its Privacy.md); before its
# first import, and whoever wants it can set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
