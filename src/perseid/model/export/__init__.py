"""Making an ONNX file from the weights of an AstroMAE, and taking weights out of foreign files."""
