"""The model bundle: all that serving reads."""
