"""ONNX, written and run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.export import ExportedProgram


def _needed(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{error}; install what exporting needs: pip install 'drconv_mm[export]' (in a clone: pip install -e "
            "'.[export]')"
        ) from error


def to_onnx(program: ExportedProgram, metadata: dict[str, str] | None = None) -> bytes:
    """The program as an ONNX model, weights included.

    Args:
        program: Of stock operations, see `to_stock_operations`.
        metadata: Is stored with it.

    Returns:
        What an ``.onnx`` file holds.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    _needed("onnx")
    _needed("onnxscript")
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    for node in model.graph.node:  # stack traces, which name folders of whoever exports
        del node.metadata_props[:]
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def onnx_runner(model: bytes | Path) -> Callable[[Tensor], list[Tensor]]:
    """A function of the images that gives all outputs, by onnxruntime on the CPU.

    Args:
        model: What an ``.onnx`` file of one input holds, or its path.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    onnxruntime = _needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]
