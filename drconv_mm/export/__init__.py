"""Models for programs without this package: ``region_conv2d`` in stock operations, ONNX."""

from .onnx import onnx_runner, to_onnx
from .stock import export_network, to_stock_operations

__all__ = ["export_network", "onnx_runner", "to_onnx", "to_stock_operations"]
