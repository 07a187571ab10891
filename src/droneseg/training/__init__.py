"""Training with nnU-Net from one validated configuration: presets, sweeps and export to ONNX."""
