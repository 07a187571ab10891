"""Predictions over a network: a service core without a framework, and thin adapters on it."""
