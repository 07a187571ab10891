"""What runs a network: OpenVINO and ONNX Runtime, behind one protocol."""
