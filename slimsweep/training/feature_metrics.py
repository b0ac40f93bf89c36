"""How near the features of two models are, and how well features tell classes apart.

Pure functions of tensors, for models without a head: `agreement` compares a cut model's features with the dense model's, and
`knn_top1` and `linear_probe_top1` measure what features are worth where labels are known. Features come in any floating
type, on any device; what is computed stays on the device of the first argument. Memory beside the arguments: at most one copy
of the features in float32, and `CHUNK` numbers at a time.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from slimsweep.errors import RefusedInput

CHUNK = 2**24  # numbers per intermediate matrix: 64 MiB in float32
TIE = 1e-5  # cosines that differ by less are equal: rounding of float32
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # per image, for standardised features
HELD_OUT = 0.2  # share of the index images by which the probe's ridge is chosen


class Agreement(NamedTuple):
    """How near a model's features are to the dense model's, on the same images."""

    r2: float  # 1: equal; 0: as far off as the dense mean feature is; negative: farther
    cosine: float  # -1 to 1: mean over images of the cosine, the dense mean taken off both
    nearest: float  # percent of images whose own dense feature is the nearest of all images' dense features


def agreement(features_ND: Tensor, dense_ND: Tensor) -> Agreement:
    """How near features are to the dense model's.

    R2 = 1 - sum |f_i - d_i|^2 / sum |d_i - mean(d)|^2, over all images i and dims. The cosine of an image is that of
    f_i - mean(d) and d_i - mean(d), and 0 where one of them is zero. The mean is taken off because it says nothing about an
    image: without that, two different images have a cosine of 0.88 on average in DINOv2-S. "Nearest" is by the same cosine,
    as in retrieval; where two images have the same dense feature, either counts.

    Args:
        features_ND: (N, D), a row per image.
        dense_ND: (N, D), the dense model's features of the same images in the same order.

    Raises:
        RefusedInput: a ValueError: the shapes differ or are not (N, D); numbers are not finite; the dense features are
            equal for all images (as those of one image are), where there is nothing to compare with.
    """
    _check_features(features_ND, "the model's features")
    _check_features(dense_ND, "the dense model's features")
    if features_ND.shape != dense_ND.shape:
        raise RefusedInput(
            f"features of shape {tuple(features_ND.shape)} cannot be compared with dense features of shape "
            f"{tuple(dense_ND.shape)}: give both models' features of the same images, with as many dims"
        )
    device = features_ND.device
    images, dims = features_ND.shape
    mean_D = torch.zeros(dims, dtype=torch.float64, device=device)
    for rows in _chunks(images, dims):
        mean_D += dense_ND[rows].to(device, torch.float64).sum(0)
    mean_D /= images
    directions_ND = torch.empty(images, dims, dtype=torch.float32, device=device)
    missed, spread, largest, cosines = 0.0, 0.0, 0.0, 0.0
    for rows in _chunks(images, dims):
        own, dense = features_ND[rows].to(device, torch.float64), dense_ND[rows].to(device, torch.float64)
        missed += float((own - dense).square().sum())
        spread += float((dense - mean_D).square().sum())
        largest = max(largest, float(dense.abs().max()))
        direction = _unit(dense - mean_D)
        directions_ND[rows] = direction.float()
        cosines += float((_unit(own - mean_D) * direction).sum())
    # Of equal features the mean is off by rounding alone.
    if spread <= images * dims * (1e-12 * largest) ** 2:
        raise RefusedInput(
            f"the dense model gives {'the one image' if images == 1 else f'all {images} images'} the same feature, so there is "
            "no R2: give more images, or images that differ"
        )
    found = 0
    for rows in _chunks(images, max(images, dims)):
        own = _unit(features_ND[rows].to(device, torch.float64) - mean_D).float()
        cosine = own @ directions_ND.T
        itself = (own * directions_ND[rows]).sum(1)
        # A feature at the mean has no direction, and is nearest to none.
        found += int(((itself >= cosine.amax(1) - TIE) & (own != 0).any(1)).sum())
    return Agreement(1 - missed / spread, cosines / images, 100 * found / images)


def knn_top1(
    index_ND: Tensor,
    index_labels_N: Tensor,
    queries_MD: Tensor,
    labels_M: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 (percent) of a vote of the nearest index images: DINO's weighted k-NN (arXiv 2104.14294, section 4.1 and code).

    Each of the `neighbours` index images with the largest cosine to a query votes for its class, with exp(cosine /
    temperature). Fewer index images than neighbours all vote. Of classes with equal votes the first wins.

    Args:
        index_ND: (N, D), features of images whose classes are known.
        index_labels_N: (N,), integers from 0.
        queries_MD: (M, D), features of the images that are judged.
        labels_M: (M,), integers from 0; a class that no index image has counts as missed.

    Raises:
        RefusedInput: a ValueError: shapes do not fit together, features are not finite, labels are not integers from 0, or
            `neighbours` or `temperature` is not above 0.
    """
    index_labels_N, labels_M = _check_labelled(index_ND, index_labels_N, queries_MD, labels_M)
    if neighbours < 1:
        raise RefusedInput(f"neighbours is {neighbours}: give at least 1")
    if not 0 < temperature < math.inf:
        raise RefusedInput(f"temperature is {temperature}: give a number above 0, as 0.07")
    images, dims = index_ND.shape
    classes = int(index_labels_N.max()) + 1
    count = min(neighbours, images)
    device = index_ND.device
    index = torch.empty(images, dims, dtype=torch.float32, device=device)
    for rows in _chunks(images, dims):
        index[rows] = _unit(index_ND[rows].double()).float()
    right = 0
    for rows in _chunks(len(queries_MD), max(images, classes, dims)):
        cosine, place = (_unit(queries_MD[rows].to(device, torch.float64)).float() @ index.T).topk(count, dim=1)
        # All votes of a query are divided by its largest, so that a low temperature does not overflow.
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(cosine), classes, dtype=torch.float32, device=device)
        votes.scatter_add_(1, index_labels_N[place], weight)
        right += int((votes.argmax(1) == labels_M[rows]).sum())
    return 100 * right / len(queries_MD)


def linear_probe_top1(
    index_ND: Tensor, index_labels_N: Tensor, queries_MD: Tensor, labels_M: Tensor, *, seed: int = 0
) -> float:
    """Top-1 (percent) of a linear classifier that is fitted to the index images: ridge regression to one-hot classes.

    Features are standardised by the index images' mean and deviation; a dim that is constant there takes no part. The ridge
    is the one of `RIDGES` with the best top-1 on `HELD_OUT` of the index images, the strongest of equal ones; the classifier
    is then fitted to all of them. This is solved exactly, so equal arguments give equal answers. (Hastie, Tibshirani,
    Friedman, The Elements of Statistical Learning, 2nd edition, sections 3.4.1 and 4.2.)

    Args:
        index_ND: (N, D), features of images whose classes are known.
        index_labels_N: (N,), integers from 0.
        queries_MD: (M, D), features of the images that are judged.
        labels_M: (M,), integers from 0; a class that no index image has counts as missed.
        seed: draws the images that are held out.

    Raises:
        RefusedInput: a ValueError: shapes do not fit together, features are not finite, or labels are not integers from 0.
    """
    index_labels_N, labels_M = _check_labelled(index_ND, index_labels_N, queries_MD, labels_M)
    images = len(index_ND)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).to(index_ND.device)
    held = round(HELD_OUT * images)
    ridge = RIDGES[len(RIDGES) // 2]  # too few images to choose by
    if held:
        fit = _Ridge(index_ND, index_labels_N, order[held:])
        ridge = max(RIDGES, key=lambda one: (fit.right(one, index_ND, index_labels_N, order[:held]), one))
    fit = _Ridge(index_ND, index_labels_N, order)
    everything = torch.arange(len(queries_MD), device=queries_MD.device)
    return 100 * fit.right(ridge, queries_MD, labels_M, everything) / len(queries_MD)


class _Ridge:
    """Ridge regression from standardised features to one-hot classes, for any ridge, from one eigendecomposition.

    Args:
        features_ND, labels_N: images, of which `rows` (places) are fitted.
    """

    def __init__(self, features_ND: Tensor, labels_N: Tensor, rows: Tensor) -> None:
        device, dims = features_ND.device, features_ND.shape[1]
        classes = int(labels_N.max()) + 1
        self.images = len(rows)
        parts = [rows[part] for part in _chunks(len(rows), max(dims, classes))]
        total = torch.zeros(dims, dtype=torch.float64, device=device)
        for part in parts:
            total += features_ND[part].double().sum(0)
        self.mean_D = total / len(rows)
        squares = torch.zeros(dims, dtype=torch.float64, device=device)
        for part in parts:
            squares += (features_ND[part].double() - self.mean_D).square().sum(0)
        deviation = (squares / len(rows)).sqrt()
        constant = deviation <= 1e-9 * self.mean_D.abs()
        self.scale_D = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, deviation))
        self.share_C = torch.bincount(labels_N[rows], minlength=classes).double() / len(rows)
        moments_DD = torch.zeros(dims, dims, dtype=torch.float64, device=device)
        targets_CD = torch.zeros(classes, dims, dtype=torch.float64, device=device)
        for part in parts:
            inputs = self._standard(features_ND[part])
            moments_DD += inputs.T @ inputs
            targets_CD.index_add_(0, labels_N[part], inputs)  # inputs have mean 0, so the classes' shares drop out
        self.values_D, self.vectors_DD = torch.linalg.eigh(moments_DD)
        self.targets_DC = self.vectors_DD.T @ targets_CD.T

    def _standard(self, features_ND: Tensor) -> Tensor:
        return (features_ND.to(self.mean_D.device, torch.float64) - self.mean_D) * self.scale_D

    def right(self, ridge: float, features_ND: Tensor, labels_N: Tensor, rows: Tensor) -> int:
        """How many of some images are told right with a ridge (per image)."""
        weights_DC = self.vectors_DD @ (self.targets_DC / (self.values_D.clamp_min(0) + ridge * self.images)[:, None])
        count = 0
        for part in _chunks(len(rows), max(weights_DC.shape)):
            scores = self._standard(features_ND[rows[part]]) @ weights_DC + self.share_C
            count += int((scores.argmax(1) == labels_N[rows[part]].to(scores.device)).sum())
        return count


def _check_labelled(index_ND: Tensor, index_labels_N: Tensor, queries_MD: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors of labels, as int64 on the device of the index; refuses what does not fit together (RefusedInput)."""
    labels = []
    for features, given, name in ((index_ND, index_labels_N, "index"), (queries_MD, labels_M, "query")):
        _check_features(features, f"the {name} images' features")
        if given.shape != features.shape[:1]:
            raise RefusedInput(
                f"{len(features)} {name} images have labels of shape {tuple(given.shape)}: give one label per image"
            )
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or int(given.min()) < 0:
            raise RefusedInput(f"the {name} images' labels are not integers from 0: number the classes from 0")
        labels.append(given.to(index_ND.device, torch.int64))
    if index_ND.shape[1] != queries_MD.shape[1]:
        raise RefusedInput(
            f"index features have {index_ND.shape[1]} dims and query features {queries_MD.shape[1]}: take one model for both"
        )
    return labels[0], labels[1]


def _check_features(features_ND: Tensor, what: str) -> None:
    """Refuse features that are not (N, D) with N and D above 0, or not finite (RefusedInput)."""
    if features_ND.ndim != 2 or not features_ND.numel() or not features_ND.is_floating_point():
        raise RefusedInput(
            f"{what} are {features_ND.dtype} of shape {tuple(features_ND.shape)}: give floating-point numbers (images, dims), "
            "at least one of each"
        )
    broken = sum(int((~features_ND[rows].isfinite()).any(1).sum()) for rows in _chunks(*features_ND.shape))
    if broken:
        raise RefusedInput(
            f"{what} are not finite for {broken} of {len(features_ND)} images: look for NaN in its weights, or lower the "
            "learning rate"
        )


def _unit(rows: Tensor) -> Tensor:
    """Rows at length 1; zero stays zero."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices over rows, so that `width` numbers per row are at most CHUNK numbers per slice."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
