"""Training in PyTorch: import an ONNX model, train it, write its weights back."""

from onnxpart.torch.exporter.export import export
from onnxpart.torch.exporter.program import load_program
from onnxpart.torch.handle import Handle, split_module
from onnxpart.torch.importer import operators as operators
from onnxpart.torch.importer.import_onnx import import_onnx
from onnxpart.torch.importer.module import ImportedModule, export_weights, load_weights, weights
from onnxpart.torch.shallow import ShallowHandle, shallow_module

__all__ = [
    "Handle",
    "ImportedModule",
    "ShallowHandle",
    "export",
    "export_weights",
    "import_onnx",
    "load_program",
    "load_weights",
    "shallow_module",
    "split_module",
    "weights",
]
