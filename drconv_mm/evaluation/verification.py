"""One-to-one verification of images: are the two of a pair the same person?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from ..registration import register_in
from .embeddings import DECIMALS, FARS, EmbeddingMetric, check_pairs, gather_embeddings, pair_cosines
from .plot import check_roc_file, draw_roc
from .roc import area_under_curve, equal_error_rate, roc_curve


def stratified_folds(same: np.ndarray, num_folds: int = 10) -> np.ndarray:
    """Cuts the pairs of the same person, and those of different persons, into contiguous parts of equal size.

    On the order of LFW's list and of insightface's ``.bin`` files these are the official ten folds. Unlike plain
    contiguous folds they also suit a list that has all pairs of one kind first.

    Args:
        same: bool ``[P]``.
        num_folds: Number of folds.

    Returns:
        Fold of each pair, int64 ``[P]``.
    """
    folds = np.empty(len(same), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(same == kind)
        folds[members] = np.arange(len(members)) * num_folds // len(members)
    return folds


def fold_accuracy(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each fold at the threshold that is best on all others.

    That is view 2 of Huang et al. 2007, "Labeled Faces in the Wild". Every score of the other folds is tried as the
    threshold, and one just above all; the highest of equally good ones is taken.

    Args:
        scores: ``[P]``; a pair is accepted where its score is at or above the threshold.
        same: bool ``[P]``.
        folds: Fold of each pair, ``[P]``.

    Returns:
        Accuracies and thresholds, float64 ``[K]``, in the order of the folds' numbers.

    Raises:
        ValueError: A fold has all pairs of a kind, which leaves none to choose the threshold on.
    """
    accuracies, thresholds = [], []
    for fold in np.unique(folds):
        test, train = folds == fold, folds != fold
        if not 0 < same[train].sum() < train.sum():
            raise ValueError(
                f"without fold {fold} there are {same[train].sum()} pairs of the same person and "
                f"{(~same[train]).sum()} of different persons to choose its threshold on; both must be at least 1: "
                "add pairs, or spread both kinds over the folds"
            )
        candidates, false_accepts, true_accepts = roc_curve(scores[train], same[train])
        candidates[0] = np.nextafter(candidates[1], np.inf)  # above all, as infinity is, but fit for a mean
        threshold = candidates[np.argmax(true_accepts - false_accepts)]
        accuracies.append(np.mean((scores[test] >= threshold) == same[test]))
        thresholds.append(threshold)
    return np.array(accuracies), np.array(thresholds)


def pixel_cosines(
    images: Sequence[np.ndarray], first: np.ndarray, second: np.ndarray, block_size: int = 128
) -> np.ndarray:
    """Cosines of pairs of raw images, each less its own mean over all pixels and channels.

    What a network must beat: this is the correlation of two pictures, with nothing learned.

    Args:
        images: n arrays ``[3, H, W]`` of one size, uint8.
        first: Index of each pair's first image, ``[P]``.
        second: Index of the other, ``[P]``.
        block_size: Pairs computed at a time, which bounds the memory.

    Returns:
        float64 ``[P]``; 0 where an image is of one colour value only.
    """
    cosines = np.empty(len(first))
    for start in range(0, len(first), block_size):
        block = slice(start, start + block_size)
        a, b = (_mean_free(np.stack([images[i] for i in members[block]])) for members in (first, second))
        cosines[block] = np.einsum("pd,pd->p", a, b, dtype=np.float64)
    return cosines.round(DECIMALS)


def _mean_free(images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1, keepdims=True)
    return np.divide(pixels, norms, out=pixels, where=norms > 0)


@register_in("METRICS")
class FaceVerification(EmbeddingMetric):
    """Verification on a list of image pairs, as on LFW, CFP-FP or AgeDB-30, by the cosine of embeddings.

    ``val_evaluator = dict(type='drconv_mm.FaceVerification')``. All in percent but the threshold, under ``face/``:

    * ``accuracy``, ``accuracy_std``: mean and (population) standard deviation over the folds, see ``fold_accuracy``.
      Folds are those of the metainfo, or ``stratified_folds``;
    * ``threshold``: mean of the folds' thresholds, a cosine;
    * ``tar_far_1e-1`` to ``tar_far_1e-6``: see ``tar_at_far``. Rates with fewer negatives than one false accept takes
      are left out, and one line in the log says which;
    * ``auc``, ``eer``: area under the ROC curve and equal error rate;
    * ``pixels/accuracy``: the same protocol on raw pixels, see ``pixel_cosines``.

    Args:
        pixel_baseline: Whether to evaluate the raw pixels beside the network. Keeps all images in memory: 37 kB one of
            112x112, 450 MB LFW.
        roc_file: Picture of the ROC curve to write at each evaluation, see ``draw_roc``; None for none. ``{prefix}`` in
            it stands for the metric's prefix, where several sets are evaluated.
        **kwargs: As mmengine's ``BaseMetric``.

    Raises:
        ValueError: ``roc_file`` has no suffix that names a format; when evaluated, for a data set without ``pairs`` in
            its metainfo, or embeddings that are missing, of different sizes, zero or not finite.
    """

    def __init__(self, pixel_baseline: bool = True, roc_file: str | None = None, **kwargs):
        super().__init__(**kwargs)
        check_roc_file(roc_file)
        self.pixel_baseline = pixel_baseline
        self.roc_file = roc_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps a batch's embeddings, and its images where the pixels are evaluated too."""
        super().process(data_batch, data_samples)
        if self.pixel_baseline:
            images: Sequence[Tensor] = data_batch["inputs"]
            # Copied: a batch from a worker lies in shared memory, of which a process may hold only so many pieces.
            self.results[-1] = [
                (*sample, image.cpu().numpy().copy()) for sample, image in zip(self.results[-1], images, strict=True)
            ]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluates all pairs."""
        pairs = self._meta("pairs", "a verification set, such as drconv_mm.FacePairs or drconv_mm.FaceBin")
        first, second, same = check_pairs(pairs)
        folds = stratified_folds(same) if pairs.get("folds") is None else np.asarray(pairs["folds"])
        samples = list(chain.from_iterable(results))
        embeddings = gather_embeddings((sample[:2] for sample in samples), 1 + max(first.max(), second.max()))
        scores = pair_cosines(embeddings, first, second)
        accuracies, thresholds = fold_accuracy(scores, same, folds)
        metrics = {
            "accuracy": 100 * float(accuracies.mean()),
            "accuracy_std": 100 * float(accuracies.std()),
            "threshold": float(thresholds.mean()),
            **self._at_rates("tar_far", scores[same], scores[~same], FARS),
            "auc": 100 * area_under_curve(scores, same),
            "eer": 100 * equal_error_rate(scores, same),
        }
        curves = {f"network, {metrics['accuracy']:.1f}%": (scores[same], scores[~same])}
        if self.pixel_baseline:
            scores = pixel_cosines({sample[0]: sample[2] for sample in samples}, first, second)
            metrics["pixels/accuracy"] = 100 * float(fold_accuracy(scores, same, folds)[0].mean())
            curves[f"raw pixels, {metrics['pixels/accuracy']:.1f}%"] = scores[same], scores[~same]
        if self.roc_file:
            draw_roc(self.roc_file.replace("{prefix}", self.prefix), curves)
        return metrics
