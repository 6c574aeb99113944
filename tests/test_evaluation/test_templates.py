"""Template features and their verification against hand-computed cases and an explicit loop."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from drconv_mm.evaluation.templates import FaceTemplateVerification, template_features

from .loop import evaluate, unit


def test_template_features_by_hand():
    # Template 7: a video of two frames, (1, 0) and (0, 1), and a photo (0, 1): (0.5, 0.5) + (0, 1) = (0.5, 1.5).
    # Template 3: one frame of the same video.
    embeddings = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    ids, features = template_features(embeddings, np.array([7, 3, 7, 7]), np.array([5, 5, 2, 5]))
    assert ids.tolist() == [3, 7]
    # Images 0 and 3 are the frames of medium 5 in template 7, both (1, 0); image 2 is its photo (0, 1).
    np.testing.assert_allclose(features, [[0, 1], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_a_long_video_weighs_no_more_than_a_photo():
    embeddings = np.array([[1, 0]] * 99 + [[0, 1]], dtype=np.float32)
    _, features = template_features(embeddings, np.zeros(100, dtype=int), np.array([0] * 99 + [1]))
    np.testing.assert_allclose(features, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_template_features_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    templates, media, embeddings = rng.integers(0, 9, 60) * 11, rng.integers(0, 4, 60), unit(rng, 60, 5)
    ids, features = template_features(embeddings, templates, media)
    assert ids.tolist() == sorted(set(templates.tolist()))
    for template, feature in zip(ids, features, strict=True):
        total = np.zeros(5)
        for medium in set(media[templates == template].tolist()):
            frames = [embeddings[i] for i in range(60) if templates[i] == template and media[i] == medium]
            total += sum(frames) / len(frames)
        np.testing.assert_allclose(feature, total / np.linalg.norm(total), atol=1e-6)


def test_a_template_that_sums_to_zero_is_named():
    embeddings = np.array([[1, 0], [1, 0], [-1, 0]], dtype=np.float32)
    with pytest.raises(ValueError, match="the embeddings of template 8 sum to zero"):
        template_features(embeddings, np.array([4, 8, 8]), np.array([0, 0, 1]))


# Template t has two frames at t and t + 10 degrees: its feature points at t + 5 degrees.
IDS = np.array([0, 10, 30, 60, 100, 180])
FRAMES = np.radians(np.stack([IDS, IDS + 10], axis=1).ravel())
EMBEDDINGS = np.stack([np.cos(FRAMES), np.sin(FRAMES)], axis=1).astype(np.float32)
FIRST, SECOND = np.array(list(combinations(IDS, 2))).T


def info(**changes) -> dict:
    pairs = dict(first=FIRST, second=SECOND, same=np.isin(SECOND - FIRST, [10, 20, 70]))
    return {**dict(templates=np.repeat(IDS, 2), media=np.repeat(IDS, 2), pairs=pairs), **changes}


def test_metric_by_hand(log_file):
    metrics = evaluate(FaceTemplateVerification(roc_file="roc.png"), EMBEDDINGS, info())
    # One person: 10, 20, 70 degrees. Two persons: 30 twice, 40, 50, 60, 80, 90, 100, 120, 150, 170, 180.
    assert metrics == pytest.approx(
        {
            "face/tar_far_1e-1": 100 * 2 / 3,  # one of twelve may be accepted; both at 30 degrees are barred
            "face/auc": 100 * (12 + 12 + 7) / 36,
            "face/eer": 100 / 3,  # down to 50 degrees 4 of 12 are accepted, and 1 of 3 is rejected
        },
        abs=1e-4,
    )
    assert "FaceTemplateVerification: tar_far is not resolvable at 1e-2, 1e-3" in log_file.read_text()
    assert (log_file.parent / "roc.png").is_file()


def test_metric_is_scikit_learns_on_many_pairs():
    rng = np.random.default_rng(0)
    templates, people = np.arange(400) // 2, np.arange(200) // 4
    embeddings = unit(rng, 50, 8)[people[templates]] + 0.5 * unit(rng, 400, 8)
    first, second = np.triu_indices(200, 1)
    same = people[first] == people[second]
    metrics = evaluate(
        FaceTemplateVerification(),
        embeddings,
        dict(templates=templates, media=np.arange(400), pairs=dict(first=first, second=second, same=same)),
        batch=64,
    )
    normalised = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    features = normalised[0::2] + normalised[1::2]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    scores = (features.astype(np.float64) @ features.T)[first, second]
    assert metrics["face/auc"] == pytest.approx(100 * roc_auc_score(same, scores), abs=1e-4)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    for rate in (1e-1, 1e-2, 1e-3, 1e-4):  # of 19,600 negatives
        assert metrics[f"face/tar_far_1e-{round(-np.log10(rate))}"] == pytest.approx(100 * tar[far <= rate].max())
    assert "face/tar_far_1e-5" not in metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(templates=None), "FaceTemplateVerification needs 'templates' in .* such as drconv_mm.FaceTemplates"),
        (dict(media=None), "FaceTemplateVerification needs 'media' in the data set's metainfo"),
        (dict(pairs=None), "FaceTemplateVerification needs 'pairs' in the data set's metainfo"),
        (dict(media=IDS), "templates of 12 and media of 6 images, but 12 images were evaluated"),
        (dict(templates=IDS), "templates of 6 and media of 12 images, but 12 images were evaluated"),
        (
            dict(pairs=dict(first=[0, 10, 999], second=[10, 5, 30], same=[True, False, False])),
            "1 entries of the pairs name templates without an image, the first is template 999",
        ),
        (
            dict(pairs=dict(first=[0, 10], second=[10, 5], same=[True, False])),
            "1 entries of the pairs name templates without an image, the first is template 5",
        ),
    ],
)
def test_errors_of_the_data_set(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(FaceTemplateVerification(), EMBEDDINGS, info(**changes))


def test_missing_images_are_an_error():
    with pytest.raises(ValueError, match="no embedding of 2 of 12 images, the first is index 10"):
        evaluate(FaceTemplateVerification(), EMBEDDINGS[:10], info())
