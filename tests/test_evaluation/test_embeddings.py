"""Embeddings in the order of their images, with one clear error for what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from drconv_mm.evaluation.embeddings import check_pairs, gather_embeddings, pair_cosines


def samples(*rows) -> list[tuple[int, np.ndarray]]:
    return [(index, np.array(row, dtype=np.float32)) for index, row in rows]


def test_gather_orders_normalises_and_drops_repeats():
    found = gather_embeddings(samples((2, [0, 2]), (0, [3, 4]), (1, [1, 0]), (0, [9, 9])), 3)
    np.testing.assert_allclose(found, [[0.6, 0.8], [1, 0], [0, 1]], rtol=1e-6)
    assert found.dtype == np.float32


def test_gather_takes_more_images_than_were_asked_for():
    assert gather_embeddings(samples((0, [1.0]), (1, [1.0])), 1).shape == (2, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, [1, 0]), (2, [1, 0])], "no embedding of 2 of 4 images, the first is index 1; .* without a subset"),
        ([], "no embedding of 4 of 4 images, the first is index 0"),
        ([(0, [1, 0]), (1, [1, 0, 0]), (2, [1, 0]), (3, [1, 0])], r"index 0 has \(2,\), index 1 has \(3,\)"),
        ([(0, [1, 0]), (1, [0, 0]), (2, [0, 1]), (3, [0, 0])], "2 of 4 embeddings are zero, the first is index 1"),
        ([(0, [1, 0]), (1, [0, 1]), (2, [np.nan, 1]), (3, [0, 1])], "1 of 4 .* not finite, the first is index 2"),
        ([(0, [1, 0]), (1, [0, 1]), (2, [1, 1]), (3, [0, np.inf])], "1 of 4 .* not finite, the first is index 3"),
    ],
)
def test_gather_names_what_is_wrong(rows, message):
    with pytest.raises(ValueError, match=message):
        gather_embeddings(samples(*rows), 4)


def test_pair_cosines_by_hand_and_independent_of_the_block():
    features = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    first, second = np.array([0, 0, 1, 0, 2]), np.array([1, 2, 2, 3, 2])
    for block_size in (1, 2, 5, 100):
        np.testing.assert_allclose(
            pair_cosines(features, first, second, block_size), [0.6, 0, 0.8, -1, 1], rtol=0, atol=1e-7
        )


@pytest.mark.parametrize("same", [[True, True], [False, False], []])
def test_pairs_of_one_kind_are_refused(same):
    pairs = dict(first=np.zeros(len(same)), second=np.ones(len(same)), same=same)
    with pytest.raises(ValueError, match=f"got {sum(same)} and {len(same) - sum(same)}; add the missing kind"):
        check_pairs(pairs)


def test_pairs_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="lists of one length, got 2 first, 3 second, 2 same"):
        check_pairs(dict(first=[0, 1], second=[1, 2, 3], same=[True, False]))
