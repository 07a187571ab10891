"""From photographs and colour masks, fetched or generated, to nnU-Net's raw layout."""
