"""Export of an AstroMAE's weights to ONNX, and import of weights from foreign files."""
