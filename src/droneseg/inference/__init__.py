"""Photographs to masks with anything that is a `Segmenter`; no torch, no nnU-Net."""
