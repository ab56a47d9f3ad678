"""Score files with a package."""
