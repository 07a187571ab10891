"""Functions and classes shared by test modules; fixtures are in conftest.py."""
