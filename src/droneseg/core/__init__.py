"""The vocabulary every other package shares; depends on numpy, Pillow and pydantic only."""
