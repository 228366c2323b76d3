"""The AstroMAE network, import of foreign weights, export to ONNX, and the runtime of the
workers."""
