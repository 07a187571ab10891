"""Monitoring: Prometheus metrics, prediction log, drift detection."""
