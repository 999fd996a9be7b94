"""Writes scikit-learn networks as ONNX files, by skl2onnx: <folder>/sklearn_<name>.onnx."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import skl2onnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SIZES: dict[str, Any] = {"hidden_layer_sizes": (24, 16), "max_iter": 5, "random_state": 0}


def main(folder: str) -> None:
    """Train every network for a moment, and export it; one that can't be exported is named on standard error."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    score = x @ rng.normal(size=(8, 4))
    networks = {
        "binary": (MLPClassifier(**SIZES), score[:, 0] > 0),
        "multiclass": (MLPClassifier(**SIZES, activation="tanh"), score.argmax(axis=1)),
        "named_classes": (MLPClassifier(**SIZES), np.asarray(["ant", "bee", "cat", "dog"])[score.argmax(axis=1)]),
        "multilabel": (MLPClassifier(**SIZES), (score > 0).astype(int)),
        "regressor": (MLPRegressor(**SIZES), score[:, 0]),
        "regressor_of_several": (MLPRegressor(**SIZES, activation="logistic"), score),
        "pipeline": (make_pipeline(StandardScaler(), MLPClassifier(**SIZES)), score.argmax(axis=1)),
    }
    for name, (network, y) in networks.items():
        path = Path(folder) / f"sklearn_{name}.onnx"
        try:
            options = {} if "regressor" in name else {"zipmap": False}
            proto = skl2onnx.to_onnx(network.fit(x, y), x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3})
            onnx.save_model(proto, path)
        except Exception as error:  # whatever an exporter raises
            print(f"{path.stem}: {' '.join(str(error).split())[:200]}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
