"""Everything that spells an nnU-Net name: folders, plans, trainer, predictor."""
