"""Features compared with the dense model's, and classes told by features."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor

from slimsweep.errors import RefusedInput
from slimsweep.training import feature_metrics
from slimsweep.training.feature_metrics import agreement, knn_top1, linear_probe_top1


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clouds(count: int, classes: int, dims: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Images of classes around centres that are the same for every seed, and their labels."""
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    return drawn(classes, dims, seed=99)[labels] + spread * drawn(count, dims, seed=seed + 1), labels


def plain_agreement(features: np.ndarray, dense: np.ndarray) -> tuple[float, float, float]:
    """The definitions, written out image by image."""
    mean = dense.mean(0)
    missed = sum(((f - d) ** 2).sum() for f, d in zip(features, dense, strict=True))
    spread = sum(((d - mean) ** 2).sum() for d in dense)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - mean, b - mean
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    own = [cosine(f, d) for f, d in zip(features, dense, strict=True)]
    nearest = [max(range(len(dense)), key=lambda j: cosine(f, dense[j])) == i for i, f in enumerate(features)]
    return 1 - missed / spread, float(np.mean(own)), 100 * float(np.mean(nearest))


@pytest.mark.parametrize("noise", [0.3, 1.5])
@pytest.mark.parametrize("chunk", [None, 64], ids=["whole", "in chunks"])
def test_agreement_is_what_its_definition_says(monkeypatch: pytest.MonkeyPatch, noise: float, chunk: int | None) -> None:
    if chunk:
        monkeypatch.setattr(feature_metrics, "CHUNK", chunk)
    dense = drawn(40, 7) + 5  # a mean that is far from zero, as of real features
    features = dense + noise * drawn(40, 7, seed=1)
    expected = plain_agreement(features.double().numpy(), dense.double().numpy())
    assert agreement(features, dense) == pytest.approx(expected, abs=1e-5)
    assert 0 < expected[2] < 100 or noise < 1  # so much noise takes some images nearer to others


def test_equal_features_agree_wholly_and_the_mean_feature_explains_nothing() -> None:
    dense = drawn(30, 5) * 3 + 10
    assert agreement(dense, dense) == pytest.approx((1, 1, 100))
    mean = dense.double().mean(0).expand(30, 5)
    assert agreement(mean, dense.double()) == pytest.approx((0, 0, 0), abs=1e-9)
    mirrored = 2 * dense.double().mean(0) - dense.double()
    assert agreement(mirrored, dense.double()) == pytest.approx((-3, -1, 0))


def test_agreement_stays_under_shifts_turns_and_scales_of_both() -> None:
    dense, other = drawn(50, 6), drawn(50, 6) + 0.7 * drawn(50, 6, seed=3)
    turn = torch.linalg.qr(drawn(6, 6, seed=4))[0]
    same = agreement(dense, other)
    assert agreement(7 * dense @ turn + 2, 7 * other @ turn + 2) == pytest.approx(same, abs=1e-4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    assert agreement(dense[order], other[order]) == pytest.approx(same, abs=1e-5)
    # Features of other images are no agreement: the order matters.
    assert agreement(dense[order], other).r2 < 0 < same.r2


def test_images_with_the_same_dense_feature_count_as_found() -> None:
    dense = drawn(10, 4).repeat(2, 1)
    assert agreement(dense.clone(), dense).nearest == 100


def test_half_precision_is_computed_in_full() -> None:
    dense = 100 + drawn(700, 8).half()  # sums of squares that overflow half precision
    assert agreement(dense, dense) == pytest.approx((1, 1, 100))


def test_agreement_refuses_what_has_no_answer() -> None:
    with pytest.raises(RefusedInput, match=r"the one image the same feature.*more images"):
        agreement(drawn(1, 4), drawn(1, 4))
    with pytest.raises(RefusedInput, match="all 9 images the same feature"):
        agreement(drawn(9, 4), drawn(1, 4).repeat(9, 1))
    with pytest.raises(RefusedInput, match=r"\(9, 4\) cannot be compared with dense features of shape \(9, 5\)"):
        agreement(drawn(9, 4), drawn(9, 5))
    with pytest.raises(RefusedInput, match="the model's features are not finite for 1 of 9 images"):
        agreement(drawn(9, 4).index_fill(0, torch.tensor([3]), math.nan), drawn(9, 4))
    with pytest.raises(RefusedInput, match=r"of shape \(9, 4, 2\)"):
        agreement(drawn(9, 4, 2), drawn(9, 4, 2))


def plain_knn(index: np.ndarray, own: np.ndarray, queries: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> float:
    """The vote, written out query by query."""
    right = 0
    for query, label in zip(queries, labels, strict=True):
        cosines = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in index]
        votes: dict[int, float] = {}
        for place in sorted(range(len(index)), key=lambda i: -cosines[i])[:k]:
            votes[int(own[place])] = votes.get(int(own[place]), 0.0) + math.exp(cosines[place] / temperature)
        right += max(votes, key=lambda one: votes[one]) == label
    return 100 * right / len(queries)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (500, 0.3)])
def test_nearest_neighbours_vote_as_in_dino(monkeypatch: pytest.MonkeyPatch, k: int, temperature: float) -> None:
    monkeypatch.setattr(feature_metrics, "CHUNK", 300)
    index, own = clouds(50, 4, 6, 1.3, seed=1)
    queries, labels = clouds(40, 4, 6, 1.3, seed=7)
    tables = [table.double().numpy() for table in (index, own, queries, labels)]
    expected = plain_knn(tables[0], tables[1], tables[2], tables[3], k, temperature)
    assert 25 < expected < 100
    assert knn_top1(index, own, queries, labels, neighbours=k, temperature=temperature) == pytest.approx(expected)
    # A cosine does not see how long features are.
    assert knn_top1(index * 9, own, queries / 5, labels, neighbours=k, temperature=temperature) == pytest.approx(expected)


def test_a_near_neighbour_outvotes_many_far_ones() -> None:
    index = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    own = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.1]])
    assert knn_top1(index, own, query, torch.tensor([0]), neighbours=4) == 100
    assert knn_top1(index, own, query, torch.tensor([0]), neighbours=4, temperature=100) == 0  # votes count alike
    assert knn_top1(index, own, query, torch.tensor([0]), neighbours=4, temperature=1e-4) == 100  # no overflow


def test_a_linear_probe_tells_what_a_line_can_tell() -> None:
    index, own = clouds(300, 5, 12, 0.2, seed=1)
    queries, labels = clouds(200, 5, 12, 0.2, seed=7)
    assert linear_probe_top1(index, own, queries, labels) == 100
    noise, wrong = drawn(300, 12), torch.randint(5, (300,), generator=torch.Generator().manual_seed(8))
    assert linear_probe_top1(noise, wrong, drawn(200, 12, seed=9), labels) < 45  # chance is 20


def test_a_linear_probe_is_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers as scikit-learn's classifier on the same standardised features."""
    monkeypatch.setattr(feature_metrics, "RIDGES", (0.03,))
    index, own = clouds(150, 4, 10, 2.0, seed=1)
    queries, labels = clouds(400, 4, 10, 2.0, seed=7)
    mean, deviation = index.mean(0), index.std(0, unbiased=False)
    model = RidgeClassifier(alpha=0.03 * 150).fit(((index - mean) / deviation).numpy(), own.numpy())
    expected = 100 * float(np.mean(model.predict(((queries - mean) / deviation).numpy()) == labels.numpy()))
    assert 40 < expected < 95
    assert linear_probe_top1(index, own, queries, labels) == pytest.approx(expected)


def test_a_linear_probe_stays_under_shifts_and_scales_and_repeats_itself() -> None:
    index, own = clouds(120, 3, 6, 1.5, seed=1)
    queries, labels = clouds(200, 3, 6, 1.5, seed=7)
    scale = 10 ** drawn(6, seed=2)
    same = linear_probe_top1(index, own, queries, labels)
    assert linear_probe_top1(index, own, queries, labels) == same
    assert linear_probe_top1((index * scale + 4).double(), own, (queries * scale + 4).double(), labels) == pytest.approx(
        same, abs=1
    )


def test_a_strong_ridge_is_chosen_where_there_are_few_images_for_many_dims() -> None:
    index, own = clouds(60, 2, 50, 3.0, seed=1)
    queries, labels = clouds(2000, 2, 50, 3.0, seed=7)
    weak = [linear_probe_top1(index, own, queries, labels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_metrics, "RIDGES", (1e-6,))
        weak.append(linear_probe_top1(index, own, queries, labels))
    assert weak[0] > weak[1]


@pytest.mark.parametrize("measure", [knn_top1, linear_probe_top1])
def test_small_and_strange_labelled_sets_have_an_answer(measure: object) -> None:
    assert callable(measure)
    one = torch.zeros(1, dtype=torch.int64)
    assert measure(drawn(1, 4), one, drawn(1, 4, seed=3), one) == 100  # one class: it is always that
    same = drawn(1, 4).repeat(6, 1)
    labels = torch.tensor([0, 1, 1, 1, 1, 0])
    assert measure(same, labels, same, labels) == pytest.approx(100 * 4 / 6)  # nothing to tell by: the commonest class
    unknown = measure(drawn(6, 4), labels, drawn(6, 4), torch.full((6,), 9))
    assert unknown == 0
    assert measure(drawn(6, 4), labels.to(torch.uint8), drawn(6, 4), labels.int()) > 0
    zeros = torch.zeros(6, 4)
    assert 0 <= measure(zeros, labels, zeros, labels) <= 100


@pytest.mark.parametrize("measure", [knn_top1, linear_probe_top1])
def test_labelled_sets_that_do_not_fit_are_refused(measure: object) -> None:
    assert callable(measure)
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RefusedInput, match="6 index images have labels of shape"):
        measure(drawn(6, 4), labels[:5], drawn(6, 4), labels)
    with pytest.raises(RefusedInput, match="6 query images have labels of shape"):
        measure(drawn(6, 4), labels, drawn(6, 4), labels[:5])
    with pytest.raises(RefusedInput, match="index features have 4 dims and query features 5"):
        measure(drawn(6, 4), labels, drawn(6, 5), labels)
    with pytest.raises(RefusedInput, match="not integers from 0"):
        measure(drawn(6, 4), labels - 1, drawn(6, 4), labels)
    with pytest.raises(RefusedInput, match="not integers from 0"):
        measure(drawn(6, 4), labels.float(), drawn(6, 4), labels)
    with pytest.raises(RefusedInput, match="the query images' features are not finite"):
        measure(drawn(6, 4), labels, drawn(6, 4) / 0, labels)
    with pytest.raises(RefusedInput, match="at least one of each"):
        measure(drawn(0, 4), labels[:0], drawn(6, 4), labels)


def test_a_vote_needs_neighbours_and_a_temperature() -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RefusedInput, match="neighbours is 0: give at least 1"):
        knn_top1(drawn(6, 4), labels, drawn(6, 4), labels, neighbours=0)
    with pytest.raises(RefusedInput, match="temperature is 0"):
        knn_top1(drawn(6, 4), labels, drawn(6, 4), labels, temperature=0)
