"""What is shown of an analysis, a plan and a model."""

from onnxpart.report.sizes import OperatorMacs, Size, Sizes, measure

__all__ = ["OperatorMacs", "Size", "Sizes", "measure"]
