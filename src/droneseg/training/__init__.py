"""Runs nnU-Net's training from one validated configuration."""
