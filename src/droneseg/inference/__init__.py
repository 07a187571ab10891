"""Inference from model bundles, without torch or nnU-Net."""
