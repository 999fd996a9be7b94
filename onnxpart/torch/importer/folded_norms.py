"""What an export for inference took out of a network: batch norms, folded into the convolutions before them."""

import re

import onnx

_RENAMED = re.compile(r"onnx::Conv_\d+")
"""What torch's older exporter calls a weight that it computed itself."""


def has_folded_norms(model: onnx.ModelProto) -> bool:
    """Whether batch norms were folded into convolutions, as PyTorch's exporters do in evaluation mode.

    The older one makes new names for both the weight and the bias of such a convolution, the newer one gives a
    convolution that had none a bias, called after its weight. Other models aren't judged.
    """
    nodes = model.graph.node
    if model.producer_name != "pytorch" or any(node.op_type == "BatchNormalization" for node in nodes):
        return False
    convolutions = [node.input for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    return any(len(names) > 2 and _is_folded(names[1], names[2]) for names in convolutions)


def _is_folded(weight: str, bias: str) -> bool:
    return bias == f"{weight}_bias" or bool(_RENAMED.fullmatch(weight) and _RENAMED.fullmatch(bias))
