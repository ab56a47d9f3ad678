"""The contract between training and serving: the files of a model package."""
