"""How good predictions are, against truth and against answers that need no network."""
