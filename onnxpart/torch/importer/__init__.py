"""ONNX becomes a trainable PyTorch module."""
