"""A PyTorch module becomes an ONNX file that can be trained."""
