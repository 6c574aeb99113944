"""What the face metrics share: embeddings collected by image index, cosines of pairs, figures at fixed rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from .roc import tar_at_far

# False accept rates by the name they have in the log.
FARS = {f"1e-{digits}": 10.0**-digits for digits in range(1, 7)}
# Cosines that agree to so many decimals are ties: all that is finer is rounding, which must not rank anything for a
# network whose embeddings are all the same.
DECIMALS = 9


class EmbeddingMetric(BaseMetric):
    """Base of the metrics that look at the embeddings of a whole numbered image set at once.

    ``data_samples`` are dicts of ``embedding`` (float ``[D]``) and ``index`` (which image of the set it is). The index
    puts the images in order, whatever process and batch they came from, and drops those that a distributed sampler
    repeats to fill its last batch.
    """

    default_prefix = "face"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the embeddings of a batch."""
        # One entry a batch: mmengine cuts the list of entries at the number of images, and would cut off images where a
        # sampler repeats some.
        self.results.append([(int(sample["index"]), _embedding(sample)) for sample in data_samples])

    def _meta(self, key: str, suggestion: str) -> Any:
        """An entry of the data set's metainfo, or an error that says where to get it."""
        meta = self.dataset_meta or {}
        if meta.get(key) is None:
            raise ValueError(
                f"{type(self).__name__} needs {key!r} in the data set's metainfo, which has "
                f"{', '.join(map(repr, meta)) or 'nothing'}; evaluate on {suggestion}"
            )
        return meta[key]

    def _at_rates(
        self, name: str, positive: np.ndarray, negative: np.ndarray, rates: Mapping[str, float]
    ) -> dict[str, float]:
        """``tar_at_far`` in percent, named ``<name>_<rate>``; says which rates are left out as not resolvable."""
        shares = dict(zip(rates, tar_at_far(positive, negative, list(rates.values())), strict=True))
        unresolved = [rate for rate, share in shares.items() if np.isnan(share)]
        if unresolved:
            print_log(
                f"{type(self).__name__}: {name} is not resolvable at {', '.join(unresolved)} with {len(negative)} "
                f"negatives; {unresolved[0]} needs {round(1 / rates[unresolved[0]])}",
                logger="current",
            )
        return {f"{name}_{rate}": 100 * float(share) for rate, share in shares.items() if not np.isnan(share)}


def _embedding(sample: dict) -> np.ndarray:
    return sample["embedding"].detach().float().cpu().numpy()


def gather_embeddings(samples: Iterable[tuple[int, np.ndarray]], num_images: int = 0) -> np.ndarray:
    """Puts embeddings in the order of their images and normalises them.

    Args:
        samples: (index, embedding ``[D]``) in any order; of a repeated index the first counts.
        num_images: How many images there must be at least.

    Returns:
        float32 ``[n, D]`` of unit length, n at least ``num_images``.

    Raises:
        ValueError: Images are missing, sizes differ, or an embedding is zero or not finite.
    """
    by_index: dict[int, np.ndarray] = {}
    for index, embedding in samples:
        by_index.setdefault(index, embedding)
    total = max(num_images, max(by_index, default=-1) + 1)
    missing = [index for index in range(total) if index not in by_index]
    if missing:
        raise ValueError(
            f"no embedding of {len(missing)} of {total} images, the first is index {missing[0]}; face metrics need the "
            "whole image set: evaluate on it without a subset (indices, num_batch_per_epoch)"
        )
    ordered = [by_index[index] for index in range(total)]
    for index, embedding in enumerate(ordered):
        if embedding.shape != ordered[0].shape:
            raise ValueError(
                f"embedding sizes differ: index 0 has {ordered[0].shape}, index {index} has {embedding.shape}; "
                "all images must come from one model"
            )
    embeddings = np.stack(ordered)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    # A norm that is not finite stands for a number that is not.
    for wrong, what in ((~np.isfinite(norms), "not finite"), (norms == 0, "zero")):
        if wrong.any():
            indices = np.flatnonzero(wrong)
            raise ValueError(
                f"{len(indices)} of {total} embeddings are {what}, the first is index {indices[0]}: look at this "
                "image, and at whether the training diverged"
            )
    embeddings /= norms
    return embeddings


def check_pairs(pairs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a verification protocol.

    Returns:
        First and second member, int64 ``[P]``, and whether they are the same person, bool ``[P]``.

    Raises:
        ValueError: No pairs, pairs of one kind only, or lists of different lengths.
    """
    first, second = (np.asarray(pairs[key], dtype=np.int64) for key in ("first", "second"))
    same = np.asarray(pairs["same"], dtype=bool)
    if not len(first) == len(second) == len(same):
        raise ValueError(
            f"pairs must be lists of one length, got {len(first)} first, {len(second)} second, {len(same)} same"
        )
    num_same = int(same.sum())
    if not 0 < num_same < len(same):
        raise ValueError(
            f"verification needs pairs of the same person and pairs of different persons, got {num_same} and "
            f"{len(same) - num_same}; add the missing kind to the pairs"
        )
    return first, second, same


def pair_cosines(features: np.ndarray, first: np.ndarray, second: np.ndarray, block_size: int = 8192) -> np.ndarray:
    """Cosines of pairs of unit vectors, rounded to ``DECIMALS``.

    Args:
        features: float32 ``[n, D]`` of unit length.
        first: Row of each pair's first member, ``[P]``.
        second: Row of the other member, ``[P]``.
        block_size: Pairs computed at a time, which bounds the memory: IJB-C has 15.7 million.

    Returns:
        float64 ``[P]``.
    """
    cosines = np.empty(len(first))
    for start in range(0, len(first), block_size):
        block = slice(start, start + block_size)
        cosines[block] = np.einsum("pd,pd->p", features[first[block]], features[second[block]], dtype=np.float64)
    return cosines.round(DECIMALS)
