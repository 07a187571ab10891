"""Types and functions shared by all packages; depends on NumPy, Pillow and pydantic only."""
