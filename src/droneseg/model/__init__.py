"""Model bundles, the model store and the model registry."""
