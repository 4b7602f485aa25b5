"""Networks whose scores are inner products, as graphs for ONNX Runtime."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving import layout
from kd_jax.serving.layout import Contents

_OPSET, _IR = 17, 8  # of 2022, so that older runtimes read it
_MISSING = "`format=onnx`: needs the extra onnx: pip install 'kd_jax[onnx]'"


def write(folder: pathlib.Path, weights: dict[str, np.ndarray]) -> None:
  """Writes the graph scores [b, I] = query [b, D] x item^T. Its table is weights/item.npy, which must be there.

  Raises InputError if `onnx` is not installed.
  """
  try:
    import onnx
    from onnx import TensorProto, helper
  except ImportError:
    raise InputError(_MISSING) from None
  tables = {name: x for name, x in weights.items() if name in ("item", "item_scale")}
  (items, width), table, nodes = tables["item"].shape, "item", []
  if "item_scale" in tables:
    nodes = [helper.make_node("Cast", ["item"], ["integers"], to=TensorProto.FLOAT),
             helper.make_node("Unsqueeze", ["item_scale", "axis"], ["scales"]),
             helper.make_node("Mul", ["integers", "scales"], ["table"])]
    table = "table"
  nodes.append(helper.make_node("Gemm", ["query", table], ["scores"], transB=1))
  constants = [_external(folder, name, x, onnx) for name, x in tables.items()]
  constants += [helper.make_tensor("axis", TensorProto.INT64, [1], [1])] if table == "table" else []
  graph = helper.make_graph(
      nodes, "inner_product", [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["b", width])],
      [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", items])], constants)
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR,
                            producer_name="kd_jax")
  (folder / layout.PROGRAMS["onnx"]).write_bytes(model.SerializeToString())


def _external(folder, name, value, onnx):
  """The constant `name`, whose numbers are the end of weights/NAME.npy."""
  place = f"weights/{name}.npy"
  tensor = onnx.TensorProto(name=name, dims=value.shape, data_location=onnx.TensorProto.EXTERNAL,
                            data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
  size = os.path.getsize(folder / place)
  for key, entry in (("location", place), ("offset", size - value.nbytes), ("length", value.nbytes)):
    tensor.external_data.add(key=key, value=str(entry))
  return tensor


def read(contents: Contents) -> Callable[..., np.ndarray]:
  """score(query [b, D]) -> [b, I]. Raises InputError if ONNX Runtime is missing, or refuses the graph."""
  try:
    import onnxruntime
  except ImportError:
    raise InputError(_MISSING) from None
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4
  path = contents.directory / layout.PROGRAMS["onnx"]
  try:
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    if [x.name for x in session.get_inputs()] != ["query"] or len(session.get_outputs()) != 1:
      raise InputError(f"{path}: not a graph from `query` to scores")
  except InputError:
    raise
  except Exception as error:  # ONNX Runtime has its own types, which it does not document
    raise InputError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot read it: {error}") from None

  def score(query):
    try:
      return session.run(None, {"query": query})[0]
    except Exception as error:
      raise InputError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: {error}") from None

  return score
