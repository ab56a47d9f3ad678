"""Where packages are kept: model store, folder, bucket; and whether they are sound."""
