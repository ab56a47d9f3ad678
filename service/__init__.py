"""The part of Whetstone that ships: package → predictions → HTTP. No torch, no transformers."""
