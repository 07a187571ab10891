"""Generated aerial scenes with exact masks: data for the demo, the tests and a first look, under nobody's terms."""
