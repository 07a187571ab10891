"""Datasets: download, import, generate, check, split and convert to nnU-Net's raw format."""
