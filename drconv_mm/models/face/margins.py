"""Angles between unit vectors and the margins added to them, safe at 0 and pi."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Angle of each pair of unit vectors, from their difference and sum (Kahan's form), not from their cosine.

    Near 0 and pi the cosine holds half of the angle's digits at best, rounds beyond +-1, and acos has an infinite
    slope there. This form is as accurate at every angle, and its gradient is finite: with respect to x, where
    ``first`` is x / |x|, it has length 1 / |x|. At exactly 0 and pi the angle has a kink and no derivative; the
    gradient there is 0, the subgradient of least norm.

    Args:
        first: ``[..., D]``, float, rows of length 1.
        second: The same shape and length.

    Returns:
        ``[...]``, radians, 0 to pi.
    """
    difference = torch.linalg.vector_norm(first - second, dim=-1)
    total = torch.linalg.vector_norm(first + second, dim=-1)
    return 2 * torch.atan2(difference, total)


def cosine_with_margins(angle: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> Tensor:
    """``cos(m1 * angle + m2) - m3``: the combined margins of ArcFace (Deng et al., CVPR 2019, eq. 4).

    Beyond pi the cosine would rise again, and the gradient would push an embedding *away* from its class. There the
    function goes on falling as in SphereFace (Liu et al., CVPR 2017, eq. 7): with ``phi = m1 * angle + m2`` in
    ``[k pi, (k + 1) pi)`` it is ``(-1)^k cos(phi) - 2k - m3``, continuous with a continuous slope ``-m1 |sin(phi)|``.

    Args:
        angle: Any shape, radians, 0 to pi.
        m1: Factor of the angle, at least 1 (SphereFace).
        m2: Added to the angle, radians, at least 0 (ArcFace).
        m3: Taken from the cosine, at least 0 (CosFace).

    Returns:
        The shape of ``angle``.
    """
    angle = m1 * angle + m2
    half_turns = (angle.detach() / math.pi).floor()
    return (1 - 2 * (half_turns % 2)) * angle.cos() - 2 * half_turns - m3
