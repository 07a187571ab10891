"""What a running service leaves behind: metrics now, records for later."""
