"""Identification against hand-computed searches and an explicit loop, whatever the blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from drconv_mm.evaluation.identification import FaceIdentification, Searches, search

from .loop import evaluate, unit


def directions(degrees) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# Directions in the plane: cosines fall with the angle between two.
IMAGES = [
    ("gallery", 0, 0),
    ("gallery", 0, 40),
    ("gallery", 1, 90),
    ("gallery", 2, 180),
    ("distractor", -1, 20),
    ("distractor", -1, 100),
    ("probe", 0, 5),  # its mates are 5 and 35 away, distractors 15 and 95, other people 85 and 175
    ("probe", 1, 97),  # its mate is 7 away, distractors 77 and 3, others 57 (person 0) and 83
    ("probe", 2, 95),  # its mate is 85 away, distractors 75 and 5, others 55 and 5
    ("probe", 9, 21),  # nobody's: the best is a distractor, 1 away
    ("probe", -1, 175),  # nobody's: the best is person 2, 5 away
]
ROLES, IDENTITIES, DEGREES = (np.array(column) for column in zip(*IMAGES, strict=True))


def test_search_by_hand():
    found = search(directions(DEGREES), ROLES, IDENTITIES)
    assert found.mated.tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(found.mate_score[:3], np.cos(np.radians([5, 7, 85])), atol=1e-6)
    # Probe 2: person 0 (55), person 1 (5) and both distractors (75, 5) are before its mate.
    assert found.rank[:3].tolist() == [1, 2, 5]
    np.testing.assert_allclose(found.other_score, np.cos(np.radians([15, 3, 5, 1, 5])), atol=1e-6)
    # Against the distractors alone: probe 0 with either mate, probe 1, probe 2.
    assert found.pair_rank.tolist() == [1, 2, 2, 3]


def test_metric_by_hand(log_file):
    metrics = evaluate(FaceIdentification(), directions(DEGREES), dict(roles=ROLES, identities=IDENTITIES))
    # Two probes without a mate resolve no FPIR of 1e-1.
    assert metrics == pytest.approx(
        {
            "face/rank1": 100 / 3,
            "face/rank5": 100,
            "face/megaface/rank1": 25,
            "face/megaface/rank5": 100,
        }
    )
    assert "tpir_fpir is not resolvable at 1e-1, 1e-2, 1e-3 with 2 negatives; 1e-1 needs 10" in log_file.read_text()


def test_tpir_by_hand():
    # Two people in the gallery, at 0 and 180 degrees. Ten probes of nobody, 20, 30, ... 110 from the first of them.
    degrees = [0, 180, *range(20, 120, 10), 10, 25, 175, 60, 140]
    roles = np.array(["gallery"] * 2 + ["probe"] * 15)
    identities = np.array([0, 1] + [7] * 10 + [0, 0, 1, 0, 0])
    metrics = evaluate(FaceIdentification(), directions(degrees), dict(roles=roles, identities=identities))
    # FPIR 1/10 lets in 20 degrees, but not 30: 10, 25 and 5 are identified, 60 is not; at 140 the mate is second.
    assert metrics["face/tpir_fpir_1e-1"] == pytest.approx(100 * 3 / 5)
    assert metrics["face/rank1"] == pytest.approx(100 * 4 / 5)
    assert "face/megaface/rank1" not in metrics  # no distractors


def test_tpir_needs_rank_one():
    # The mate scores above every threshold, but somebody else more so: that is no identification.
    roles = np.array(["gallery"] * 2 + ["probe"] * 11)
    degrees, identities = [0, 4, 3, *[90] * 10], np.array([0, 1, 0] + [7] * 10)
    metrics = evaluate(FaceIdentification(), directions(degrees), dict(roles=roles, identities=identities))
    assert metrics["face/tpir_fpir_1e-1"] == metrics["face/rank1"] == 0
    assert metrics["face/rank5"] == 100


def test_ties_count_against_the_mate():
    # A network that gives one embedding to all: nothing is identified, whatever the rounding of products.
    rng = np.random.default_rng(0)
    embeddings = np.tile(unit(rng, 1, 67), (60, 1))
    roles = np.array(["gallery"] * 10 + ["probe"] * 20 + ["distractor"] * 30)
    identities = np.array([*range(10), *range(10), *range(10), *[-1] * 30])
    for block_size in (1, 7, 100):
        found = search(embeddings, roles, identities, block_size)
        assert (found.rank == 1 + 9 + 30).all()
        assert (found.pair_rank == 1 + 30).all()


def random_set(seed: int, size: int = 120, people: int = 12):
    rng = np.random.default_rng(seed)
    roles = rng.choice(["gallery", "probe", "distractor"], size)
    identities = np.where(roles == "distractor", -1, rng.integers(0, people, size))
    identities[(roles == "gallery") & (identities == 3)] = 4  # person 3 is not enrolled
    embeddings = unit(rng, people + 1, 6)[identities] + 0.7 * unit(rng, size, 6)
    embeddings[roles == "distractor"] = unit(rng, int((roles == "distractor").sum()), 6)
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), roles, identities


def search_by_loops(embeddings, roles, identities) -> Searches:
    cosine = (embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)).tolist()
    of = {role: [i for i in range(len(roles)) if roles[i] == role] for role in ("gallery", "probe", "distractor")}
    mate_score, rank, other_score, pair_rank = [], [], [], []
    for p in of["probe"]:
        mates = [g for g in of["gallery"] if identities[g] == identities[p]]
        candidates = {d: cosine[p][d] for d in of["distractor"]}
        for g in of["gallery"]:
            if g not in mates:
                key = f"person {identities[g]}"
                candidates[key] = max(candidates.get(key, -np.inf), cosine[p][g])
        best = max((cosine[p][g] for g in mates), default=-np.inf)
        mate_score.append(best)
        rank.append(1 + sum(score >= best for score in candidates.values()))
        other_score.append(max(candidates.values(), default=-np.inf))
        pair_rank += sorted(1 + sum(cosine[p][d] >= cosine[p][g] for d in of["distractor"]) for g in mates)
    return Searches(np.array(mate_score), np.array(rank), np.array(other_score), np.array(pair_rank))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_size", [1, 3, 16, 1000])
def test_search_against_loops(seed, block_size):
    embeddings, roles, identities = random_set(seed)
    found, expected = search(embeddings, roles, identities, block_size), search_by_loops(embeddings, roles, identities)
    assert 0 < expected.mated.sum() < len(expected.mated)
    np.testing.assert_array_equal(found.mated, expected.mated)
    np.testing.assert_array_equal(found.rank[found.mated], expected.rank[found.mated])
    np.testing.assert_allclose(found.mate_score, expected.mate_score, atol=1e-8)
    np.testing.assert_allclose(found.other_score, expected.other_score, atol=1e-8)
    np.testing.assert_array_equal(np.sort(found.pair_rank), np.sort(expected.pair_rank))


def test_metric_does_not_depend_on_the_block_or_the_order():
    embeddings, roles, identities = random_set(0)
    info = dict(roles=roles, identities=identities)
    expected = evaluate(FaceIdentification(), embeddings, info)
    order = np.random.default_rng(1).permutation(len(roles)).tolist()
    assert evaluate(FaceIdentification(block_size=5), embeddings, info, order=order) == expected


def test_distractors_are_never_in_one_matrix():
    rng = np.random.default_rng(0)
    probes, distractors = 200, 20_000
    roles = np.array(["gallery"] * probes + ["probe"] * probes + ["distractor"] * distractors)
    identities = np.concatenate([np.arange(probes), np.arange(probes), np.full(distractors, -1)])
    embeddings = unit(rng, len(roles), 4)
    matrix = 8 * probes * distractors  # bytes of all cosines: 32 MB
    tracemalloc.start()
    try:
        found = search(embeddings, roles, identities, block_size=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.pair_rank.mean() > 100
    assert peak < matrix / 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(roles=None), "FaceIdentification needs 'roles' in .* such as drconv_mm.FaceIdentities"),
        (dict(identities=None), "FaceIdentification needs 'identities' in the data set's metainfo"),
        (dict(roles=["query"] * 11), "roles must be among 'gallery', 'probe', 'distractor', got 'query'"),
        (dict(identities=[0, 1]), "a role and an identity for each image, got 11 and 2"),
        (dict(identities=IDENTITIES - 1), "a gallery image has no identity"),
        (
            dict(identities=np.where(ROLES == "probe", 50, IDENTITIES)),
            "none of 5 probes has a mate among 4 gallery images",
        ),
        (dict(roles=["gallery"] * 11, identities=np.arange(11)), "none of 0 probes has a mate among 11 gallery images"),
    ],
)
def test_errors_of_the_data_set(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(FaceIdentification(), directions(DEGREES), {**dict(roles=ROLES, identities=IDENTITIES), **changes})


def test_errors_of_the_images():
    info = dict(roles=ROLES, identities=IDENTITIES)
    with pytest.raises(ValueError, match="no embedding of 2 of 11 images, the first is index 9"):
        evaluate(FaceIdentification(), directions(DEGREES[:9]), info)
    with pytest.raises(ValueError, match="roles of 11 images, but 12 images were evaluated"):
        evaluate(FaceIdentification(), directions([*DEGREES, 0]), info)


def test_block_size_must_be_positive():
    with pytest.raises(ValueError, match="block_size must be at least 1 image, got 0"):
        FaceIdentification(block_size=0)
