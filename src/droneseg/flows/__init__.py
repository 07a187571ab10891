"""Compositions of what lies below: what a person wants done, from end to end."""
