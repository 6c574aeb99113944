"""One-to-one verification of templates: all images and video frames of a person that one encounter left."""

from __future__ import annotations

from itertools import chain

import numpy as np

from ..registration import register_in
from .embeddings import FARS, EmbeddingMetric, check_pairs, gather_embeddings, pair_cosines
from .plot import check_roc_file, draw_roc
from .roc import area_under_curve, equal_error_rate


def template_features(
    embeddings: np.ndarray, templates: np.ndarray, media: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One feature a template: the mean over each medium's images, summed over the media and normalised.

    So the thousand frames of one video weigh no more than one photo (Whitelam et al. 2017, "IARPA Janus Benchmark-B
    Face Dataset"; Maze et al. 2018, "IARPA Janus Benchmark - C").

    Args:
        embeddings: float32 ``[n, D]`` of unit length.
        templates: Template of each image, int64 ``[n]``.
        media: Medium of each image (a photo, a video), int64 ``[n]``. The same medium in two templates counts in both.

    Returns:
        The templates' ids in ascending order, int64 ``[T]``, and their features, float32 ``[T, D]`` of unit length.

    Raises:
        ValueError: The images of a template sum to zero.
    """
    order = np.lexsort((media, templates))
    templates, media = templates[order], media[order]
    starts = _starts(templates, media)
    counts = np.diff(np.append(starts, len(templates)))
    means = np.add.reduceat(embeddings[order], starts) / counts[:, None].astype(np.float32)
    templates = templates[starts]
    starts = _starts(templates)
    features = np.add.reduceat(means, starts)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(f"the embeddings of template {templates[starts][np.argmin(norms)]} sum to zero")
    return templates[starts], features / norms


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where runs of equal keys begin."""
    changes = np.any([np.diff(key) != 0 for key in keys], axis=0)
    return np.flatnonzero(np.append(True, changes))


@register_in("METRICS")
class FaceTemplateVerification(EmbeddingMetric):
    """Verification on a list of template pairs, as IJB-B's and IJB-C's 1:1 protocol, by the cosine of features.

    ``val_evaluator = dict(type='drconv_mm.FaceTemplateVerification')``, on a data set whose metainfo has ``templates``,
    ``media`` and ``pairs`` of template ids. All in percent, under ``face/``: ``tar_far_1e-1`` to ``tar_far_1e-6``,
    ``auc`` and ``eer`` as ``FaceVerification`` has them. See ``template_features``.

    Args:
        roc_file: Picture of the ROC curve to write at each evaluation, see ``draw_roc``; None for none. ``{prefix}`` in
            it stands for the metric's prefix, where several sets are evaluated.
        **kwargs: As mmengine's ``BaseMetric``.

    Raises:
        ValueError: ``roc_file`` has no suffix that names a format; when evaluated, for metainfo that lacks an entry or
            does not fit the images, and for embeddings that are missing, of different sizes, zero or not finite.
    """

    def __init__(self, roc_file: str | None = None, **kwargs):
        super().__init__(**kwargs)
        check_roc_file(roc_file)
        self.roc_file = roc_file

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluates all pairs."""
        suggestion = "a template set, such as drconv_mm.FaceTemplates"
        templates, media = (np.asarray(self._meta(key, suggestion)) for key in ("templates", "media"))
        first, second, same = check_pairs(self._meta("pairs", suggestion))
        embeddings = gather_embeddings(chain.from_iterable(results), len(templates))
        if not len(embeddings) == len(templates) == len(media):
            raise ValueError(
                f"the metainfo has templates of {len(templates)} and media of {len(media)} images, but "
                f"{len(embeddings)} images were evaluated; there must be one for each image"
            )
        ids, features = template_features(embeddings, templates, media)
        first, second = _rows(ids, first), _rows(ids, second)
        scores = pair_cosines(features, first, second)
        metrics = {
            **self._at_rates("tar_far", scores[same], scores[~same], FARS),
            "auc": 100 * area_under_curve(scores, same),
            "eer": 100 * equal_error_rate(scores, same),
        }
        if self.roc_file:
            draw_roc(
                self.roc_file.replace("{prefix}", self.prefix),
                {f"network, AUC {metrics['auc']:.1f}%": (scores[same], scores[~same])},
            )
        return metrics


def _rows(ids: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Rows of templates in the ascending ids."""
    rows = np.searchsorted(ids, members).clip(max=len(ids) - 1)
    unknown = members[ids[rows] != members]
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} entries of the pairs name templates without an image, the first is template {unknown[0]}; "
            "remove these pairs or add the images"
        )
    return rows
