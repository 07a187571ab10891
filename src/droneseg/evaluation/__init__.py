"""Quality of predicted masks compared with ground truth."""
