"""One-to-many identification: whose face is it, among the enrolled ones and a million strangers?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from ..registration import register_in
from .embeddings import DECIMALS, EmbeddingMetric, gather_embeddings, pair_cosines

ROLES = ("gallery", "probe", "distractor")
RANKS = (1, 5)
# False positive identification rates by the name they have in the log.
FPIRS = {f"1e-{digits}": 10.0**-digits for digits in range(1, 4)}


@dataclass
class Searches:
    """What the searches of P probes found, and Q pairs of a probe and a mate.

    A *mate* of a probe is a gallery image of the same person. A *candidate* is a person: one identity of the gallery,
    with the best cosine of its images, or one distractor.

    Attributes:
        mate_score: Cosine of the best mate, float64 ``[P]``; minus infinity without a mate.
        rank: 1 + the number of other candidates that score at least ``mate_score``, int64 ``[P]``; means something only
            where there is a mate.
        other_score: Cosine of the best other candidate, float64 ``[P]``; minus infinity where there is none.
        pair_rank: 1 + the number of distractors that score at least as high as the mate, int64 ``[Q]``.
    """

    mate_score: np.ndarray
    rank: np.ndarray
    other_score: np.ndarray
    pair_rank: np.ndarray

    @property
    def mated(self) -> np.ndarray:
        """Whether a probe has a mate, bool ``[P]``."""
        return self.mate_score > -np.inf


def search(embeddings: np.ndarray, roles: np.ndarray, identities: np.ndarray, block_size: int = 2048) -> Searches:
    """Searches for every probe among the gallery and the distractors.

    Scores are counted block by block against the mates', and never held in one matrix. Ties count against the mate.

    Args:
        embeddings: float32 ``[n, D]`` of unit length.
        roles: One of ``ROLES`` for each image, ``[n]``.
        identities: int64 ``[n]``; that of a distractor does not matter.
        block_size: How many probes are compared with how many enrolled images at a time; gallery images of one person
            stay in one block. The result does not depend on it.

    Returns:
        Probes in the order of their images, pairs in the order of their probes.
    """
    gallery, probes, distractors = (np.flatnonzero(roles == role) for role in ROLES)
    gallery = gallery[np.argsort(identities[gallery], kind="stable")]
    enrolled, wanted = identities[gallery], identities[probes]

    # The mates of a probe are one run of the sorted gallery.
    first_mate, end = (np.searchsorted(enrolled, wanted, side) for side in ("left", "right"))
    num_mates = end - first_mate
    pair_probe = np.repeat(np.arange(len(probes)), num_mates)
    pair_slot = np.arange(len(pair_probe)) - np.repeat(np.cumsum(num_mates) - num_mates, num_mates)
    pair_score = pair_cosines(embeddings, probes[pair_probe], gallery[first_mate[pair_probe] + pair_slot])
    mate_scores = np.full((len(probes), num_mates.max(initial=0)), np.inf)  # padded: infinity outscores all
    mate_scores[pair_probe, pair_slot] = pair_score
    mate_score = np.full(len(probes), -np.inf)
    np.maximum.at(mate_score, pair_probe, pair_score)

    num_above = np.zeros(len(probes), dtype=np.int64)
    num_strangers = np.zeros(mate_scores.shape, dtype=np.int64)
    other_score = np.full(len(probes), -np.inf)

    def count(rows: slice, scores: np.ndarray) -> None:
        num_above[rows] += (scores >= mate_score[rows, None]).sum(axis=1)
        other_score[rows] = np.maximum(other_score[rows], scores.max(axis=1))

    for columns, rows, scores in _cosine_blocks(embeddings, gallery, enrolled, probes, block_size):
        starts = _starts(enrolled[columns])
        scores = np.maximum.reduceat(scores, starts, axis=1)
        scores[wanted[rows, None] == enrolled[columns][starts]] = -np.inf
        count(rows, scores)
    for _, rows, scores in _cosine_blocks(embeddings, distractors, np.arange(len(distractors)), probes, block_size):
        for slot in range(mate_scores.shape[1]):
            num_strangers[rows, slot] += (scores >= mate_scores[rows, slot, None]).sum(axis=1)
        count(rows, scores)
    return Searches(mate_score, 1 + num_above, other_score, 1 + num_strangers[pair_probe, pair_slot])


def _starts(people: np.ndarray) -> np.ndarray:
    """Where each person of a sorted list begins."""
    return np.flatnonzero(np.diff(people, prepend=people[:1] - 1))


def _cosine_blocks(
    embeddings: np.ndarray, members: np.ndarray, people: np.ndarray, probes: np.ndarray, block_size: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Cosines of probes (rows) and members (columns) by blocks that part no person: (columns, rows, float64 scores)."""
    starts = np.append(_starts(people), len(people))
    cuts = np.searchsorted(starts, np.arange(0, len(people), block_size))  # the next person begins at or after these
    edges = np.unique(np.append(starts[cuts], len(people)))
    for begin, end in pairwise(edges):
        columns = embeddings[members[begin:end]].astype(np.float64)
        for row in range(0, len(probes), block_size):
            rows = slice(row, row + block_size)
            scores = embeddings[probes[rows]].astype(np.float64) @ columns.T
            yield slice(begin, end), rows, np.round(scores, DECIMALS, out=scores)


@register_in("METRICS")
class FaceIdentification(EmbeddingMetric):
    """Identification of probes among enrolled images, by the cosine of embeddings.

    ``val_evaluator = dict(type='drconv_mm.FaceIdentification')``, on a data set whose metainfo has ``roles``
    ('gallery', 'probe' or 'distractor' for each image) and ``identities``. A distractor is an enrolled image of a
    person whom no probe shows. ``Searches`` says what a mate, a candidate and a rank are. In percent, under ``face/``:

    * ``rank1``, ``rank5``: closed set (ISO/IEC 19795-1, identification rate at rank k). Of the probes with a mate,
      those with ``rank`` at most 1 or 5 among all candidates: the other people of the gallery and the distractors;
    * ``megaface/rank1``, ``megaface/rank5``, where there are distractors (Kemelmacher-Shlizerman et al. 2016, "The
      MegaFace Benchmark"). Of the pairs of a probe and a mate, those whose mate is among the first 1 or 5 of a gallery
      of this one mate and all distractors;
    * ``tpir_fpir_1e-1`` to ``tpir_fpir_1e-3``, where there are probes without a mate: open set (Grother and Ngan, NIST
      FRVT 1:N; Maze et al. 2018, IJB-C). FPIR is the share of the probes without a mate whose best candidate scores at
      or above the threshold; TPIR is the share of those with a mate whose mate has rank 1 and scores at or above it.
      The threshold is chosen as in ``tar_at_far``. Rates with fewer probes without a mate than one false positive
      takes are left out, and one line in the log says which.

    Args:
        block_size: See ``search``.
        **kwargs: As mmengine's ``BaseMetric``.

    Raises:
        ValueError: ``block_size`` under 1; when evaluated, for metainfo that lacks an entry or does not fit the images,
            no probe with a mate, and embeddings that are missing, of different sizes, zero or not finite.
    """

    def __init__(self, block_size: int = 2048, **kwargs):
        super().__init__(**kwargs)
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1 image, got {block_size!r}")
        self.block_size = block_size

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Searches for all probes."""
        suggestion = "an identification set, such as drconv_mm.FaceIdentities"
        roles, identities = (np.asarray(self._meta(key, suggestion)) for key in ("roles", "identities"))
        _check_roles(roles, identities)
        embeddings = gather_embeddings(chain.from_iterable(results), len(roles))
        if len(embeddings) != len(roles):
            raise ValueError(
                f"the metainfo has roles of {len(roles)} images, but {len(embeddings)} images were evaluated; there "
                "must be one for each image"
            )
        found = search(embeddings, roles, identities, self.block_size)
        mated = found.mated
        metrics = _shares("rank", found.rank[mated])
        if "distractor" in roles:
            metrics.update(_shares("megaface/rank", found.pair_rank))
        if not mated.all():
            first = np.where(found.rank == 1, found.mate_score, -np.inf)[mated]
            metrics.update(self._at_rates("tpir_fpir", first, found.other_score[~mated], FPIRS))
        return metrics


def _shares(name: str, ranks: np.ndarray) -> dict[str, float]:
    return {f"{name}{k}": 100 * float(np.mean(ranks <= k)) for k in RANKS}


def _check_roles(roles: np.ndarray, identities: np.ndarray) -> None:
    unknown = sorted(set(np.unique(roles).tolist()) - set(ROLES))
    if unknown:
        raise ValueError(f"roles must be among {', '.join(map(repr, ROLES))}, got {unknown[0]!r}")
    if len(roles) != len(identities):
        raise ValueError(f"there must be a role and an identity for each image, got {len(roles)} and {len(identities)}")
    gallery, probes = (identities[roles == role] for role in ROLES[:2])
    if (gallery < 0).any():
        raise ValueError("a gallery image has no identity (it is negative); give it one, or the role 'distractor'")
    if not np.isin(probes, gallery).any():
        raise ValueError(
            f"none of {len(probes)} probes has a mate among {len(gallery)} gallery images; identification needs probes "
            "and gallery images of the same identities"
        )
