"""Ten-fold verification by hand, by a loop, and on real faces; the metric through mmengine's evaluator."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from drconv_mm.evaluation.plot import roc_figure
from drconv_mm.evaluation.verification import FaceVerification, fold_accuracy, pixel_cosines, stratified_folds

from .loop import evaluate


def test_stratified_folds_by_hand():
    same = np.array([True, True, True, True, False, False, False, False])
    assert stratified_folds(same, 2).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    # In LFW's order, each fold's pairs of one person before those of two, they are its own folds.
    lfw = np.tile(np.repeat([True, False], 300), 10)
    assert stratified_folds(lfw).tolist() == np.repeat(np.arange(10), 600).tolist()
    # Fewer than ten of a kind: as many folds as there are.
    assert stratified_folds(np.array([True, False, True, False])).tolist() == [0, 0, 5, 5]


def test_fold_accuracy_by_hand():
    scores = np.array([0.9, 0.6, 0.5, 0.2, 0.8, 0.3, 0.7, 0.4])
    same = np.array([True, True, False, False] * 2)
    folds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Fold 0 from fold 1: at 0.8 or at 0.3 three of four are right, and the higher is taken: 0.9 is accepted, 0.6 not.
    # Fold 1 from fold 0: at 0.6 all are right: 0.8 and, wrongly, 0.7 are accepted, 0.3 wrongly not.
    accuracies, thresholds = fold_accuracy(scores, same, folds)
    assert accuracies.tolist() == [0.75, 0.5]
    assert thresholds.tolist() == [0.8, 0.6]


@pytest.mark.parametrize("seed", range(3))
def test_fold_accuracy_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    same = rng.random(200) < 0.5
    scores = np.round(rng.normal(same * 1.0), 1)
    folds = rng.integers(0, 10, 200)
    expected = []
    for fold in range(10):
        others = [i for i in range(200) if folds[i] != fold]
        best, best_right = None, -1
        for threshold in sorted({scores[i] for i in others} | {np.inf}, reverse=True):
            right = sum((scores[i] >= threshold) == same[i] for i in others)
            if right > best_right:
                best, best_right = threshold, right
        test = [i for i in range(200) if folds[i] == fold]
        expected.append(sum((scores[i] >= best) == same[i] for i in test) / len(test))
    np.testing.assert_allclose(fold_accuracy(scores, same, folds)[0], expected)


def test_a_fold_with_all_pairs_of_a_kind_is_refused():
    with pytest.raises(ValueError, match="without fold 3 there are 0 pairs of the same person and 2 of different"):
        fold_accuracy(np.arange(4.0), np.array([True, True, False, False]), np.array([3, 3, 4, 4]))


def test_pixel_cosines_by_hand_and_independent_of_the_block():
    images = np.zeros((4, 3, 1, 2), dtype=np.uint8)
    images[0] = [[[0, 2]]] * 3  # less the mean: -1, 1
    images[1] = [[[5, 9]]] * 3  # the same up to brightness and contrast
    images[2] = [[[9, 5]]] * 3  # the negative
    images[3] = 77  # nothing to see
    first, second = np.array([0, 0, 1, 0]), np.array([1, 2, 1, 3])
    for block_size in (1, 3, 4):
        np.testing.assert_allclose(pixel_cosines(images, first, second, block_size), [1, -1, 1, 0], atol=1e-6)
    colour = np.zeros((2, 3, 1, 1), dtype=np.uint8)
    colour[0, 0], colour[1, 0] = 3, 6  # one mean for the image, not one a channel: a colour remains
    np.testing.assert_allclose(pixel_cosines(colour, np.array([0]), np.array([1])), [1], atol=1e-6)


def lfw_mini(folder) -> tuple[np.ndarray, dict]:
    """The images by name [n, 3, 112, 112], and the pairs."""
    lines = [line.split() for line in (folder / "pairs.txt").read_text().splitlines()]
    names = sorted({name for line in lines for name in line[:2]})
    images = [cv2.imread(str(folder / "verify" / name))[..., ::-1].transpose(2, 0, 1) for name in names]
    pairs = dict(
        first=np.array([names.index(line[0]) for line in lines]),
        second=np.array([names.index(line[1]) for line in lines]),
        same=np.array([line[2] == "1" for line in lines]),
        folds=None,
    )
    return np.stack(images), pairs


def test_raw_pixels_of_real_faces_give_61_9_percent(shared_data):
    images, pairs = lfw_mini(shared_data / "lfw_mini")
    embeddings = np.random.default_rng(0).normal(size=(len(images), 8)).astype(np.float32)
    metrics = evaluate(FaceVerification(), embeddings, dict(pairs=pairs), images, batch=64)
    assert len(images) == 400
    assert metrics["face/pixels/accuracy"] == pytest.approx(61.9, abs=0.1)
    assert metrics["face/accuracy"] == pytest.approx(50, abs=5)  # random embeddings


# Pair i is of images 2i and 2i + 1, this many degrees apart.
SAME_DEGREES, OTHER_DEGREES = [10, 70, 20, 30], [25, 60, 90, 110, 130, 140, 50, 80, 100, 120]
DEGREES = np.array(SAME_DEGREES + OTHER_DEGREES)
EMBEDDINGS = np.stack([np.cos(np.radians([0 * DEGREES, DEGREES])), np.sin(np.radians([0 * DEGREES, DEGREES]))])
EMBEDDINGS = EMBEDDINGS.transpose(2, 1, 0).reshape(-1, 2).astype(np.float32)
FOLDS = np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])


def meta(**changes) -> dict:
    size = len(DEGREES)
    pairs = dict(first=2 * np.arange(size), second=2 * np.arange(size) + 1, same=np.arange(size) < 4, folds=FOLDS)
    return dict(pairs={**pairs, **changes})


def test_metric_by_hand(log_file):
    metrics = evaluate(FaceVerification(pixel_baseline=False), EMBEDDINGS, meta())
    # Fold 1 is best parted at 30 degrees: of fold 0 that takes 10 rightly, 25 and 70 wrongly, 6 of 8 are right. Fold 0
    # is best parted at 10 (7 of 8): of fold 1 that takes nothing, and wrongly not 20 and 30, 4 of 6 are right.
    assert metrics == pytest.approx(
        {
            "face/accuracy": 100 * (6 / 8 + 4 / 6) / 2,
            "face/accuracy_std": 100 * (6 / 8 - 4 / 6) / 2,
            "face/threshold": (np.cos(np.radians(30)) + np.cos(np.radians(10))) / 2,
            "face/tar_far_1e-1": 75,  # one of ten may be accepted, 25, but not 50: 10, 20 and 30 are above
            "face/auc": 100 * (10 + 10 + 9 + 7) / 40,  # negatives below each of 10, 20, 30, 70
            "face/eer": 25,  # between 2 and 3 of 10 accepted 3 of 4 are
        },
        abs=1e-5,
    )
    lines = [line for line in log_file.read_text().splitlines() if "not resolvable" in line]
    assert len(lines) == 1
    assert "tar_far is not resolvable at 1e-2, 1e-3, 1e-4, 1e-5, 1e-6 with 10 negatives; 1e-2 needs 100" in lines[0]


def test_metric_does_not_depend_on_the_order_or_on_repeats():
    order = [*np.random.default_rng(0).permutation(len(EMBEDDINGS)).tolist(), 3, 5]
    metric = FaceVerification(pixel_baseline=False)
    assert evaluate(metric, EMBEDDINGS, meta(), order=order) == evaluate(metric, EMBEDDINGS, meta(), batch=1)


def test_embeddings_in_bfloat16():
    metrics = evaluate(FaceVerification(pixel_baseline=False), torch.from_numpy(EMBEDDINGS).bfloat16(), meta())
    expected = evaluate(FaceVerification(pixel_baseline=False), EMBEDDINGS, meta())
    assert metrics == pytest.approx(expected, abs=0.01)  # the threshold is rounded


def test_a_network_that_says_the_same_of_all_is_at_chance():
    same = np.arange(400) < 200
    pairs = dict(first=np.arange(400), second=np.arange(400, 800), same=same, folds=None)
    embeddings = np.tile(np.random.default_rng(0).normal(size=(1, 67)).astype(np.float32), (800, 1))
    metrics = evaluate(FaceVerification(pixel_baseline=False), embeddings, dict(pairs=pairs))
    assert metrics["face/accuracy"] == metrics["face/auc"] == metrics["face/eer"] == 50
    assert metrics["face/tar_far_1e-1"] == 0
    assert metrics["face/threshold"] == pytest.approx(1, abs=1e-6)  # just above all cosines, and a number


def images_of(embeddings: np.ndarray) -> np.ndarray:
    """Pictures whose mean-free pixels have the embeddings' cosines, up to rounding."""
    x, y = 100 * embeddings[:, 0], 100 * embeddings[:, 1]
    pixels = np.stack([x, -x, y, -y], axis=1).round() + 128
    return np.repeat(pixels.reshape(-1, 1, 2, 2), 3, axis=1).astype(np.uint8)


def test_pixels_are_evaluated_beside_the_network():
    images = images_of(EMBEDDINGS)
    metrics = evaluate(FaceVerification(), np.roll(EMBEDDINGS, 1, axis=0), meta(), images)
    expected = evaluate(FaceVerification(pixel_baseline=False), EMBEDDINGS, meta())
    assert metrics["face/pixels/accuracy"] == pytest.approx(expected["face/accuracy"])
    assert metrics["face/accuracy"] != pytest.approx(expected["face/accuracy"])


def test_images_are_kept_when_the_batch_is_gone():
    metric, images = FaceVerification(), torch.from_numpy(images_of(EMBEDDINGS))
    metric.dataset_meta = meta()
    metric.process(dict(inputs=images), [dict(embedding=torch.ones(2), index=i) for i in range(len(images))])
    images.zero_()
    assert metric.evaluate(len(images))["face/pixels/accuracy"] == pytest.approx(100 * (6 / 8 + 4 / 6) / 2)


def test_errors_of_the_data_set():
    metric = FaceVerification(pixel_baseline=False)
    with pytest.raises(ValueError, match="FaceVerification needs 'pairs' in .*, which has 'classes'; .*FacePairs"):
        evaluate(metric, EMBEDDINGS, dict(classes=("a",)))
    metric = FaceVerification(pixel_baseline=False)
    with pytest.raises(ValueError, match="got 14 and 0; add the missing kind"):
        evaluate(metric, EMBEDDINGS, meta(same=np.ones(14, dtype=bool)))
    metric = FaceVerification(pixel_baseline=False)
    with pytest.raises(ValueError, match="no embedding of 3 of 28 images, the first is index 25"):
        evaluate(metric, EMBEDDINGS[:25], meta())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_roc_picture_lies_beside_the_log(log_file, suffix):
    metric = FaceVerification(roc_file=f"curves/roc{suffix}")
    for _ in range(2):  # the second overwrites the first
        evaluate(metric, EMBEDDINGS, meta(), images_of(EMBEDDINGS))
    folder = log_file.parent / "curves"
    assert [file.name for file in folder.iterdir()] == [f"roc{suffix}"]
    if suffix == ".png":
        assert cv2.imread(str(folder / "roc.png")).std() > 0


def test_roc_picture_names_both_curves(log_file):
    evaluate(FaceVerification(roc_file="roc.svg"), EMBEDDINGS, meta(), images_of(EMBEDDINGS))
    picture = (log_file.parent / "roc.svg").read_text()
    # matplotlib draws letters as shapes and keeps the text in a comment.
    for text in ("network, 70.8%", "raw pixels, 70.8%", "false accept rate", "true accept rate"):
        assert f"<!-- {text} -->" in picture


def test_roc_picture_has_the_rates_at_its_ends():
    positive, negative = np.array([0.9, 0.75, 0.65, 0.3]), np.arange(10) / 10 - 0.1
    (line,) = roc_figure(dict(network=(positive, negative))).axes[0].lines
    assert [tuple(point) for point in line.get_xydata()[[0, -1]]] == [(0.1, 0.5), (1, 1)]


def test_roc_picture_at_an_absolute_path_and_without_a_log(log_file, tmp_path, monkeypatch):
    metric = FaceVerification(pixel_baseline=False, roc_file=str(tmp_path / "elsewhere" / "roc.png"))
    evaluate(metric, EMBEDDINGS, meta())
    assert (tmp_path / "elsewhere" / "roc.png").is_file()
    MMLogger.get_instance(f"{tmp_path} without a file")
    monkeypatch.chdir(tmp_path)
    evaluate(FaceVerification(pixel_baseline=False, roc_file="roc.png"), EMBEDDINGS, meta())
    assert (tmp_path / "roc.png").is_file()


def test_roc_pictures_of_several_sets(log_file):
    for prefix in ("lfw", "agedb_30"):
        metric = FaceVerification(pixel_baseline=False, roc_file="roc_{prefix}.png", prefix=prefix)
        evaluate(metric, EMBEDDINGS, meta())
    assert {file.name for file in log_file.parent.glob("*.png")} == {"roc_lfw.png", "roc_agedb_30.png"}


def test_roc_file_of_another_format_is_refused_before_the_run():
    with pytest.raises(ValueError, match=r"roc_file must end in one of .pdf, .png, .svg, got 'roc.xyz'"):
        FaceVerification(roc_file="roc.xyz")
