"""Which photographs show the same place, and how to part them so that no place is in two parts."""
