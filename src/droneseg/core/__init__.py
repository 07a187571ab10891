"""Types and functions shared by all packages; depends only on NumPy, Pillow and pydantic."""
