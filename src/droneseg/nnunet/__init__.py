"""Integration of nnU-Net: folders, plans, preprocessing, networks, checkpoints, trainer and predictor."""
