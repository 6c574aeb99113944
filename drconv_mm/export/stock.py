"""``region_conv2d`` in operations that every runtime has: each pixel's answers of all banks, of which one is picked.

m times the multiply-adds of the operator: no stock operation applies other filters at each pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..ops.backends.common import bank_matrices, of_own_region, patches, region_map
from ..ops.geometry import Geometry


def _region_conv2d(input, filters, guide, stride, padding, dilation, groups, *for_backward):
    """The operator's forward, with its arguments."""
    kernel_size, matrices = filters.shape[-2:], bank_matrices(filters, groups)
    # One image's filters are those of a convolution; a batch that may grow is asked for no size, or it would be fixed.
    if isinstance(input.shape[0], int) and input.shape[0] == 1:
        banks = matrices[0].flatten(0, 1).unflatten(1, (-1, *kernel_size))
        answers = F.conv2d(input, banks, None, stride, padding, dilation, groups)
        answers = answers.flatten(2).unflatten(1, (groups, -1))
    else:
        geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
        answers = matrices @ patches(input, kernel_size, geometry)
    return of_own_region(answers, region_map(guide), filters.shape[1])


def to_stock_operations(program: ExportedProgram) -> ExportedProgram:
    """The program without operators of this package, which then runs, and is converted, where it is not installed.

    Args:
        program: Of ``torch.export.export``, of a model in eval mode.

    Returns:
        A program that computes the same, at m times the operator's multiply-adds.
    """
    program = program.run_decompositions({torch.ops.drconv_mm.region_conv2d.default: _region_conv2d})
    for node in program.graph.nodes:  # it names folders of whoever exports
        node.meta.pop("stack_trace", None)
    return program


class _Network(nn.Module):
    """A toolbox's model as a function of images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> object:
        """What the head gives."""
        return self.model(images, mode="tensor")


@torch.no_grad()
def export_network(model: nn.Module, images: Tensor, dynamic_batch: bool = False) -> ExportedProgram:
    """A toolbox's model between preprocessing and postprocessing (``mode='tensor'``), in stock operations.

    Args:
        model: A detector, segmentor, classifier or face recogniser, in eval mode.
        images: ``[N, 3, H, W]``, as the model's ``data_preprocessor`` gives them: an example of the size.
        dynamic_batch: Let N be any; ``images`` must then have at least two.

    Returns:
        A program of ``images``, which gives what the model's head does before it is decoded: class scores, a
        detector's score and box maps by level, a segmentor's logits, a face's embedding.

    Raises:
        ValueError: One image as an example of any number: it would be taken for a constant.
        Exception: PyTorch can't trace the model, for example where a head's operations depend on what it finds.
    """
    if dynamic_batch and len(images) < 2:
        raise ValueError(f"dynamic_batch=True needs at least 2 images as an example, got {len(images)}")
    shapes = ({0: Dim("batch")},) if dynamic_batch else None
    return to_stock_operations(torch.export.export(_Network(model).eval(), (images,), dynamic_shapes=shapes))
