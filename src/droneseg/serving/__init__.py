"""Prediction service: framework-independent core, FastAPI and BentoML adapters."""
