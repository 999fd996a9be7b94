"""Writes Keras networks as ONNX files, by tf2onnx: <folder>/keras_<name>.onnx."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf
import tf2onnx
from keras import applications, layers

Tensor = Any
IMAGE = (32, 32, 3)


def model(shape: tuple[int, ...], body: Callable[[Tensor], Tensor]) -> keras.Model:
    """A network from a batch of `shape` to what `body` makes of it."""
    x = keras.Input(shape, name="x")
    return keras.Model(x, body(x))


def mlp(x: Tensor) -> Tensor:
    """Two hidden layers with dropout."""
    h = layers.Dropout(0.5)(layers.Dense(32, "relu")(x))
    return layers.Dense(5, "softmax")(layers.Dense(24, "tanh")(h))


def lenet(x: Tensor) -> Tensor:
    """Convolutions, max pooling, dense layers."""
    h = layers.MaxPooling2D()(layers.Conv2D(8, 5, activation="relu", padding="same")(x))
    h = layers.MaxPooling2D()(layers.Conv2D(16, 5, activation="relu")(h))
    return layers.Dense(10)(layers.Dense(48, "relu")(layers.Flatten()(h)))


def resnet(x: Tensor) -> Tensor:
    """Residual blocks with batch normalisation."""
    h = layers.Conv2D(12, 3, padding="same", use_bias=False)(x)
    for width, stride in ((12, 1), (24, 2)):
        skip = h if stride == 1 else layers.Conv2D(width, 1, stride)(h)
        h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, stride, "same", use_bias=False)(h)))
        h = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(h))
        h = layers.ReLU()(layers.Add()([h, skip]))
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(h))


def mobilenet(x: Tensor) -> Tensor:
    """Depthwise and separable convolutions."""
    h = layers.Conv2D(12, 3, 2, "same", activation="relu6")(x)
    h = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(h)))
    h = layers.SeparableConv2D(24, 3, padding="same", depth_multiplier=2, activation="silu")(h)
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(h))


def recurrent(layer: type[layers.Layer]) -> Callable[[Tensor], Tensor]:
    """Two recurrent layers and a classifier."""
    return lambda x: layers.Dense(3)(layer(16)(layer(12, return_sequences=True)(x)))


def transformer(x: Tensor) -> Tensor:
    """An encoder block with multi-head attention, layer normalisation behind."""
    h = layers.Dense(24)(x)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(4, 6)(h, h))
    h = layers.LayerNormalization()(h + layers.Dense(24)(layers.Dense(48, "silu")(h)))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(h))


def unet(x: Tensor) -> Tensor:
    """Down, up by a transposed convolution, and the skip concatenated."""
    a = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(24, 3, 2, "same", activation="relu")(a)
    c = layers.Concatenate()([layers.Conv2DTranspose(12, 2, 2, activation="relu")(b), a])
    return layers.Conv2D(2, 1)(layers.Conv2D(12, 3, padding="same", activation="elu")(c))


def networks() -> dict[str, Callable[[], keras.Model]]:
    """All networks by name."""
    small: dict[str, Any] = {"weights": None, "input_shape": IMAGE, "classes": 10}
    return {
        "mlp": lambda: model((20,), mlp),
        "lenet": lambda: model((28, 28, 1), lenet),
        "resnet": lambda: model(IMAGE, resnet),
        "mobilenet": lambda: model(IMAGE, mobilenet),
        "lstm": lambda: model((7, 5), recurrent(layers.LSTM)),
        "gru": lambda: model((7, 5), recurrent(layers.GRU)),
        "transformer": lambda: model((9, 8), transformer),
        "unet": lambda: model((16, 16, 3), unet),
        "ResNet50": lambda: applications.ResNet50(**small),
        "MobileNetV2": lambda: applications.MobileNetV2(**small),
        "EfficientNetB0": lambda: applications.EfficientNetB0(**small),
        "DenseNet121": lambda: applications.DenseNet121(**small),
    }


def main(folder: str) -> None:
    """Export every network with random weights; one that can't be exported is named on standard error."""
    for name, build in networks().items():
        keras.utils.set_random_seed(0)
        network = build()
        # biases and statistics as they are made, zeros and ones, would hide errors
        noise = (0.2 * abs(tf.random.normal(w.shape).numpy()) * (w.ndim == 1) for w in network.get_weights())
        network.set_weights([w + n for w, n in zip(network.get_weights(), noise, strict=True)])
        signature = [tf.TensorSpec([None, *network.input_shape[1:]], tf.float32, name="x")]
        path = Path(folder) / f"keras_{name}.onnx"
        try:
            function = tf.function(lambda x, n=network: n(x, training=False), input_signature=signature)
            tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(path))
        except Exception as error:  # whatever an exporter raises
            print(f"{path.stem}: {' '.join(str(error).split())[:200]}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
