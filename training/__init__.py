"""The part of Whetstone that makes packages: labelled text → checkpoint → model package."""
