"""The FastAPI service: an adapter on `serving.service`."""

from droneseg.serving.api.app import create_app

__all__ = ["create_app"]
