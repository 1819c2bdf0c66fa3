"""A run as ONNX: a graph that ONNX Runtime reads, with programs that generate text by it."""
