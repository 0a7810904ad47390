import numpy as np
import pytest

from tools.search.dense import (
    VECTORS_NAME,
    DenseIndex,
    build_ann,
    exact_search,
    measure_recall,
)


def _unit(rng, centres, rows):
    vectors = centres[rng.integers(len(centres), size=rows)] + 0.4 * rng.normal(size=(rows, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(20, 32))
    return _unit(rng, centres, 3000), _unit(rng, centres, 60)


def test_flat_is_the_brute_force_order(vectors):
    stored, queries = vectors
    rows, scores = exact_search(queries, stored, 7)
    products = queries @ stored.T
    assert np.array_equal(rows, np.argsort(-products, axis=1)[:, :7])
    assert np.allclose(scores, np.take_along_axis(products, rows, 1), atol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_recorded_recall_is_what_the_opened_index_gives(vectors, kind, tmp_path):
    stored, queries = vectors
    np.save(tmp_path / VECTORS_NAME, stored)
    record = build_ann(stored, kind, tmp_path, queries, 0.95, lambda _: None)
    rows, scores = DenseIndex(tmp_path, record).search(queries, 10)
    truth, _ = exact_search(queries, stored, 10)
    assert record.recall_at_10 >= 0.95
    assert measure_recall(rows, truth) == pytest.approx(record.recall_at_10, abs=1e-4)
    exact = np.take_along_axis(queries @ stored.T, rows, 1)
    assert np.allclose(scores, exact, atol=1e-5)
    assert (record.nprobe > 1) == (kind == "ivf")
    assert (record.ef_search > 0) == (kind == "hnsw")


def test_a_lower_target_is_met_with_a_narrower_beam(vectors, tmp_path):
    stored, queries = vectors
    probes = [
        build_ann(stored, "ivf", tmp_path, queries, target, lambda _: None).nprobe
        for target in (0.5, 0.999)
    ]
    assert probes[0] < probes[1]


def test_asking_for_more_than_there_is_gives_what_there_is(vectors, tmp_path):
    stored, queries = vectors
    np.save(tmp_path / VECTORS_NAME, stored[:5])
    record = build_ann(stored[:5], "ivf", tmp_path, queries, 0.9, lambda _: None)
    rows, _ = DenseIndex(tmp_path, record).search(queries[:2], 50)
    assert rows.shape == (2, 5)
    assert sorted(rows[0][rows[0] >= 0]) == [0, 1, 2, 3, 4]
