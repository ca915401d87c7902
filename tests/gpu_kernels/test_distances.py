"""Cosine distances of many pairs: the reference's, exact where it matters, the same however they are batched."""

import numpy as np
import pytest

from gpu_kernels import threads
from gpu_kernels.distances import Vectors, paired_cosine_distances, reference_cosine_distances


def vectors(count: int, size: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 8, 13, 384, 1280])
def test_distances_are_those_of_the_reference(size: int) -> None:
    a, b = vectors(40, size), vectors(40, size, 1)
    b[:10] = a[:10] + 1e-3 * b[:10]
    np.testing.assert_allclose(paired_cosine_distances(a, b), reference_cosine_distances(a, b), rtol=0, atol=1e-12)


def test_equal_vectors_are_at_exactly_zero_and_opposite_ones_at_two() -> None:
    a = vectors(500, 1280) * np.float32(37)
    assert (paired_cosine_distances(a, a) == 0.0).all()
    np.testing.assert_allclose(paired_cosine_distances(a, -a), 2.0, rtol=0, atol=1e-12)
    assert paired_cosine_distances(a, -a).max() <= 2.0


def test_length_does_not_matter_and_order_neither() -> None:
    a, b = vectors(30, 384), vectors(30, 384, 1)
    np.testing.assert_allclose(paired_cosine_distances(a, b), paired_cosine_distances(8 * a, b / 1024), atol=1e-12)
    np.testing.assert_array_equal(paired_cosine_distances(a, b), paired_cosine_distances(b, a))


def test_a_distance_depends_on_its_own_pair_alone_whatever_the_batch_layout_and_threads() -> None:
    a, b = vectors(1000, 384), vectors(1000, 384, 1)
    together = paired_cosine_distances(a, b)
    alone = [paired_cosine_distances(a[n : n + 1], b[n : n + 1])[0] for n in range(0, 1000, 50)]
    np.testing.assert_array_equal(together[::50], alone)
    np.testing.assert_array_equal(together[::-2], paired_cosine_distances(a[::-2], np.asfortranarray(b)[::-2]))
    count = threads.count()
    try:
        for other in (1, 3):
            threads.configure(other)
            np.testing.assert_array_equal(together, paired_cosine_distances(a, b))
    finally:
        threads.configure(count)


def test_a_vector_without_direction_has_no_distance() -> None:
    a, b = vectors(3, 20), vectors(3, 20, 1)
    a[0], b[1, 5] = 0, np.nan
    assert np.isnan(paired_cosine_distances(a, b)).tolist() == [True, True, False]


def test_no_pairs_have_no_distances() -> None:
    assert paired_cosine_distances(vectors(0, 384), vectors(0, 384)).shape == (0,)


@pytest.mark.parametrize("other", [(4, 8), (3, 7), (24,)])
def test_unequal_shapes_are_refused(other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two equal shapes"):
        paired_cosine_distances(vectors(3, 8), np.ones(other, np.float32))
