"""droneseg: drone photographs with colour masks in, a trained nnU-Net and an honest segmentation service out."""
