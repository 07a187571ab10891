"""What the end of a service may take: Cloud Run kills what has not ended 10 s after SIGTERM."""

START_S = 1.0  # for a start that is not over
DRAIN_S = 7.5  # for what was admitted
GRACEFUL_S = 8  # for the last answers to be sent; bodies that do not come are given up
STOP_S = 9.0  # for the last records
