"""Nodes and initializers of a graph in the making."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Kept, Rewrite
from onnxpart.errors import ModelError
from onnxpart.ir.arrays import array_of, rows_of
from onnxpart.ir.flatten import Place
from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured, constant_node, live, metadata_of, unused
from onnxpart.ir.trainable import told_of_copies
from onnxpart.ir.unflatten import Unflattener
from onnxpart.planning.plan import METADATA, METADATA_PART, InitializerPlan, Plan, slice_array, slice_stream
from onnxpart.storage.draft import Draft, empty
from onnxpart.storage.rows import Array, Stream, stream


class Writer:
    """Nodes and initializers of a graph in the making; hands out names that are not in use."""

    def __init__(self, model: Model, declare: Callable[[onnx.ValueInfoProto, str, int], None]) -> None:
        self.model = model
        self.unflattener = Unflattener(model.flat.regions, declare)
        self.initializers: dict[str, Array | TensorProto | Stream] = {}
        self.copies: dict[str, list[str]] = {}
        self._names = {n for node in model.flat.nodes for n in (*node.input, *node.output, node.name)}
        self._names |= set(model.initializers)

    def unique(self, name: str) -> str:
        """`name`, with a number behind it if it is taken."""
        return unused(name, self._names)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node named after its output."""
        self.unflattener.insert(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Iterable[int], hint: str) -> str:
        """A new integer initializer."""
        name = self.unique(hint)
        self.initializers[name] = np.asarray(list(values), np.int64)
        return name

    def rewritten(
        self,
        op: Op,
        node: onnx.NodeProto,
        kept: Callable[[str], Kept],
        rewrite: Callable[[Rewrite], None] | None,
        place: Place,
    ) -> None:
        """Append a node adapted to a part.

        :param op: the operator in the whole. :param node: its copy, with its final names. :param kept: the part's
            indices of each tensor. :param rewrite: what its rule does to it; None if the node stays as it is.
        :raises ModelError: when the operator's shapes contradict each other.
        """
        r = Rewrite(op, node, kept, self.unique)
        try:
            if rewrite is not None:
                rewrite(r)
        except (ValueError, IndexError) as error:
            where = f"{self.model.name}: the shapes at {op.title}"
            raise ModelError(f"{where} contradict each other ({error}); fix the export.") from error
        self.select(r)
        for new in (r.node, *r.after):
            self.unflattener.append(new, place)

    def select(self, r: Rewrite) -> None:
        """Put what a rewrite needs in front."""
        for new in r.before:
            self.unflattener.insert(new)
        self.initializers.update(r.constants)

    def hold(self, name: str) -> None:
        """Take over an initializer of the source as it is."""
        tensor = self.model.initializers[name]
        self.initializers[name] = stream(rows_of(self.model, name)) if self.model.external(name) else tensor

    def hold_slice(self, initializer: InitializerPlan, part: int, name: str) -> None:
        """Take over a part's piece of an initializer of the source, under the name `name`."""
        source = initializer.name
        if name != source:
            self.copies.setdefault(source, []).append(name)
        if self.model.external(source):
            self.initializers[name] = slice_stream(initializer, part, rows_of(self.model, source))
        else:
            self.initializers[name] = slice_array(initializer, part, array_of(self.model, source))

    def finish(self, plan: Plan, part: int | None) -> Draft:
        """The model: live nodes and initializers, everything else as in the source."""
        source = self.model.proto
        model = onnx.ModelProto(
            ir_version=source.ir_version,
            opset_import=source.opset_import,
            producer_name=source.producer_name,
            producer_version=source.producer_version,
            domain=source.domain,
            model_version=source.model_version,
            doc_string=source.doc_string,
            metadata_props=source.metadata_props,
        )
        graph = model.graph
        graph.name, graph.doc_string = source.graph.name, source.graph.doc_string
        graph.metadata_props.extend(source.graph.metadata_props)
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        if part is None and plan.same_graph:
            graph.value_info.extend(source.graph.value_info)
        nodes, used = live(self.unflattener.nodes, [v.name for v in source.graph.output])
        read = {n for node in source.graph.node for n in (*node.input, *captured(node))}
        constants, streams = [], {}
        for name, value in self.initializers.items():
            if name in self.model.constants:
                if name in used:
                    constants.append(constant_node(_tensor(value, name, self.model)))
                continue
            if name not in used and (name in read or name not in self.model.initializers):
                continue
            graph.initializer.append(_tensor(value, name, self.model))
            if isinstance(value, Stream):
                streams[name] = value
        graph.node.extend([*constants, *nodes])
        entries = {METADATA: plan.to_json()}
        if part is not None:
            entries[METADATA_PART] = str(part)
        rest = {key: value for key, value in metadata_of(model).items() if key not in (METADATA, METADATA_PART)}
        helper.set_model_props(model, {**rest, **told_of_copies(model, self.copies), **entries})
        return Draft(model, streams)


def _tensor(value: Array | TensorProto | Stream, name: str, model: Model) -> TensorProto:
    if isinstance(value, TensorProto):
        return value
    doc = model.initializers[name].doc_string if name in model.initializers else ""
    if isinstance(value, Stream):
        return empty(name, value, doc)
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
    if doc:
        tensor.doc_string = doc
    return tensor
