"""Train nnU-Net on drone images with colour masks, and serve the model as a segmentation service."""
