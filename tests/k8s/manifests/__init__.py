"""What the manifests are checked by: rendering, schemas, and what schemas miss."""
