"""Labels that a model predicts for photographs without masks, with a weight for each pixel (self-training).

A model is often right in one view of a photograph and wrong in another: a lake can look like asphalt in a close view,
and a dark meadow like water. Each photograph is therefore predicted at two sizes, at several exposures, and mirrored.
The label is the class with the largest mean probability. Its weight is large if the views agree and are confident; a
training on such labels corrects the views in which the model was wrong. An error that all views share has a large
weight, so look at the overlays before training.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from pydantic import BaseModel, ConfigDict, ValidationError

from droneseg.core.camera import Ground
from droneseg.core.class_files import CLASSES_NAME, MaskColours, write_classes
from droneseg.core.classes import BACKGROUND_ID, DEFAULT_CLASSES, ClassTable
from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_bytes, write_text
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import Image, decode_image, encode_png
from droneseg.core.masks import Mask, encode_mask
from droneseg.core.prediction import class_fractions
from droneseg.data.dataset import LABELS_NAME
from droneseg.flows.output_folder import PhotographResult, require_output_folder, result_of
from droneseg.inference.batch import DEFAULT_VIEW, ViewOptions
from droneseg.inference.runtimes.base import argmax_and_max
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import brightness, exposure_tables, resample
from droneseg.model.bundle import Manifest

INDEX_NAME = LABELS_NAME
EXPOSURES = (0.6, 1.0, 1.6)
_UNKNOWN_SIZES = ((1.0, 0.7), (2.0, 0.3))
"""Sizes relative to the whole photograph in one tile, with their weights, if the ground resolution is unknown."""
_KNOWN_SIZES = ((1.0, 0.7), (0.5, 0.3))
"""Sizes relative to the model's ground resolution, with their weights."""
_OVERLAY_OPACITY = 0.6


@dataclass(frozen=True)
class LabelOptions:
    """Options of the labels.

    Attributes:
        max_pixels: Largest accepted photograph, in pixels.
        view: Ground resolution of the photographs, by default read from their files.
        exposures: Brightness factors at which each photograph is predicted, one of them 1.
        mirrored: Whether to also predict mirrored copies.
        min_agreement: A pixel has weight 0 if at most this share of the views predicts its label.
        min_confidence: A pixel has weight 0 if the mean probability of its label is at most this.
        overlay: Whether to also write pictures of the labels and their weights.
        force: Whether to also label photographs whose label is up to date.

    Raises:
        ConfigurationError: If an exposure is not from 0.2 to 5, if none is 1, or if a limit is not from 0 to below 1.
    """

    max_pixels: int
    view: ViewOptions = DEFAULT_VIEW
    exposures: tuple[float, ...] = EXPOSURES
    mirrored: bool = True
    min_agreement: float = 0.75
    min_confidence: float = 0.6
    overlay: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if 1.0 not in self.exposures or not all(0.2 <= factor <= 5 for factor in self.exposures):
            raise ConfigurationError(f"Exposures are {self.exposures}; they must be from 0.2 to 5, one of them 1.")
        for name, value in (("agreement", self.min_agreement), ("confidence", self.min_confidence)):
            if not 0 <= value < 1:
                raise ConfigurationError(f"The smallest {name} is {value:g}; it must be from 0 to below 1.")


class LabelRecord(BaseModel):
    """Facts about the label of one photograph.

    Attributes:
        stem: Stem of the photograph.
        source: Name of its file.
        source_sha256: SHA-256 of the file.
        model_id: Id of the model.
        profile: Profile of the bundle.
        options: Options that the label depends on.
        width: Width of the labelled image.
        height: Height of the labelled image.
        gsd_m: Metres per pixel of the labelled image; None if unknown.
        class_fractions: Share of the pixels by class name.
        mean_weight: Mean weight of the pixels, 0 to 1.
        unlabelled_share: Share of the pixels with weight 0.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    stem: str
    source: str
    source_sha256: str
    model_id: str
    profile: str
    options: str
    width: int
    height: int
    gsd_m: float | None
    class_fractions: dict[str, float]
    mean_weight: float
    unlabelled_share: float

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Everything that the label depends on."""
        return self.model_id, self.profile, self.options, self.source_sha256


LabelResult: TypeAlias = PhotographResult[LabelRecord]
"""Result for one photograph."""


@dataclass(frozen=True)
class Label:
    """Label of a photograph.

    Attributes:
        image: RGB, shape (H, W, 3), dtype uint8, at the size of the label.
        mask: Class ids, shape (H, W), dtype uint8.
        weights: Weights in hundredths, shape (H, W), dtype uint8, 0 to 100.
        gsd_m: Metres per pixel of the image; None if unknown.
    """

    image: Image
    mask: Mask
    weights: NDArray[np.uint8]
    gsd_m: float | None


def label_photographs(
    segmenter: BundleSegmenter, manifest: Manifest, sources: Sequence[ImageFiles], out: Path, options: LabelOptions
) -> Iterator[LabelResult]:
    """Label photographs, and write a dataset folder with `images`, `masks` and `weights`.

    A photograph is skipped if `out` has its label by the same model with the same options. Files are written
    atomically. A photograph that fails does not affect the others.

    Args:
        segmenter: Segmenter of the model.
        manifest: Manifest of its bundle.
        sources: Photographs with distinct stems.
        out: Folder of the dataset; created if missing.
        options: Options of the labels.

    Yields:
        One result per photograph.

    Raises:
        OutputExistsError: If `out` contains other files.
    """
    require_label_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    records = dict(_read_records(out))
    _write_records(records, out)
    if segmenter.classes != DEFAULT_CLASSES:
        write_classes(out / CLASSES_NAME, MaskColours(segmenter.classes))
    for source in sources:
        work = partial(_label_file, segmenter, manifest, source, out, options, records.get(source.stem))
        result = result_of(source, work)
        if result.record and not result.skipped:
            records[source.stem] = result.record
            _write_records(records, out)
        yield result


def require_label_folder(out: Path) -> None:
    """Check that `out` is a new folder or one of labels.

    Raises:
        OutputExistsError: If it is a file, or a folder with other content.
    """
    require_output_folder(out, INDEX_NAME, "labels")


def label_image(
    segmenter: BundleSegmenter, manifest: Manifest, image: Image, ground: Ground, options: LabelOptions
) -> Label:
    """Label one photograph.

    Args:
        segmenter: Segmenter of the model.
        manifest: Manifest of its bundle.
        image: RGB, shape (H, W, 3), dtype uint8.
        ground: Ground resolution of the photograph.
        options: Options of the labels.
    """
    sizes = _view_sizes(image.shape[:2], manifest.patch_of(segmenter.profile), ground, manifest)
    height, width = max(sizes)
    table = exposure_tables(image, manifest.context.exposure if manifest.context else None)[0]
    corrected = image if table is None else table[image]
    total = np.zeros((len(manifest.classes), height, width), np.float32)
    predictions: list[tuple[Mask, float]] = []
    for size, size_weight in sizes.items():
        view = resample(corrected, size)
        weight = size_weight / len(options.exposures) / (2 if options.mirrored else 1)
        for probabilities in _predict_variants(segmenter, view, options):
            at_label = np.stack([_resize(channel, (height, width)) for channel in probabilities])
            total += np.float32(weight) * at_label
            predictions.append((argmax_and_max(at_label)[0], weight))
    mask, confidence = argmax_and_max(total)
    votes = (np.float32(weight) * (ids == mask) for ids, weight in predictions)
    agreement = sum(votes, np.zeros(mask.shape, np.float32))
    weights = pixel_weights(mask, agreement, confidence, options)
    return Label(resample(image, (height, width)), mask, weights, _scaled_gsd(ground, image.shape[1], width))


def pixel_weights(
    mask: Mask, agreement: NDArray[np.float32], confidence: NDArray[np.float32], options: LabelOptions
) -> NDArray[np.uint8]:
    """Return the weights of pixels in hundredths, shape (H, W), dtype uint8.

    The weight is the product of two factors: the share of the views that predict the label, rescaled from 0 at
    `min_agreement` to 1 if all do, and the mean probability of the label, rescaled from 0 at `min_confidence` to 1.
    Background has weight 0.

    Args:
        mask: Class ids, shape (H, W), dtype uint8.
        agreement: Share of the views that predict the class of the mask, shape (H, W), dtype float32.
        confidence: Mean probability of the class, shape (H, W), dtype float32.
        options: Smallest agreement and confidence.
    """
    factors = [
        np.clip((values - least) / (1 - least), 0, 1)
        for values, least in ((agreement, options.min_agreement), (confidence, options.min_confidence))
    ]
    weights = np.round(100 * factors[0] * factors[1])
    weights[mask == BACKGROUND_ID] = 0
    result: NDArray[np.uint8] = weights.astype(np.uint8)
    return result


def change_exposure(image: Image, factor: float) -> Image:
    """Return an image whose median luma is multiplied by a factor; a factor above 1 raises it to at most 0.95.

    To darken an image, its pixel values are multiplied; to brighten it, a gamma correction avoids clipped highlights.

    Args:
        image: RGB, shape (H, W, 3), dtype uint8.
        factor: Factor of the brightness.
    """
    if factor == 1:
        return image
    values = np.arange(256, dtype=np.float64) / 255
    median = brightness(image)
    if factor < 1 or not 0 < median < 1:
        changed = values * factor
    else:
        changed = values ** (np.log(min(median * factor, 0.95)) / np.log(median))
    table = np.clip(changed * 255, 0, 255).round().astype(np.uint8)
    bright: Image = table[image]
    return bright


def draw_label(label: Label, classes: ClassTable) -> Image:
    """Return the photograph with its label: the larger the weight, the stronger the display colour of the class.

    Pixels with weight 0 are grey.
    """
    table = classes.display_colours()
    grey = label.image.mean(axis=2, keepdims=True)
    weights = label.weights[..., None].astype(np.float32) / 100
    photograph = np.where(weights > 0, label.image, grey)
    opacity = _OVERLAY_OPACITY * weights
    drawn: Image = (photograph * (1 - opacity) + table[label.mask] * opacity).astype(np.uint8)
    return drawn


def _view_sizes(
    size: tuple[int, int], patch: tuple[int, int], ground: Ground, manifest: Manifest
) -> dict[tuple[int, int], float]:
    """Return height and width of each view with its weight; no view is larger than the photograph."""
    if ground.gsd_m is not None and manifest.ground is not None:
        base, factors = ground.gsd_m / manifest.ground.gsd_m, _KNOWN_SIZES
    else:
        base, factors = min(tile / side for side, tile in zip(size, patch, strict=True)), _UNKNOWN_SIZES
    weights: dict[tuple[int, int], float] = {}
    for factor, weight in factors:
        height, width = (max(1, round(side * min(1.0, base * factor))) for side in size)
        weights[height, width] = weights.get((height, width), 0.0) + weight
    return weights


def _predict_variants(segmenter: BundleSegmenter, view: Image, options: LabelOptions) -> Iterator[NDArray[np.float32]]:
    """Yield the class probabilities of a view at each exposure and mirrored, shape (C, h, w), dtype float32."""
    for factor in options.exposures:
        exposed = change_exposure(view, factor)
        yield _probabilities(segmenter, exposed)
        if options.mirrored:
            yield _probabilities(segmenter, np.ascontiguousarray(exposed[:, ::-1]))[:, :, ::-1]


def _probabilities(segmenter: BundleSegmenter, image: Image) -> NDArray[np.float32]:
    return segmenter.probabilities(image, plain=True)[1].astype(np.float32) / np.float32(255)


def _resize(channel: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if channel.shape == size:
        return channel
    picture = pillow.fromarray(np.ascontiguousarray(channel))
    return np.asarray(picture.resize(size[::-1], pillow.Resampling.BILINEAR))


def _scaled_gsd(ground: Ground, width: int, labelled_width: int) -> float | None:
    return None if ground.gsd_m is None else float(f"{ground.gsd_m * width / labelled_width:.4g}")


def _label_file(
    segmenter: BundleSegmenter,
    manifest: Manifest,
    source: ImageFiles,
    out: Path,
    options: LabelOptions,
    earlier: LabelRecord | None,
) -> LabelResult:
    data = source.read(max_pixels=options.max_pixels)
    wanted = (segmenter.model_id, segmenter.profile, _describe(options), hashlib.sha256(data).hexdigest())
    files = {name: out / name / f"{source.stem}.png" for name in ("images", "masks", "weights", "overlays")}
    needed = [file for name, file in files.items() if name != "overlays" or options.overlay]
    if earlier and not options.force and earlier.identity == wanted and all(file.is_file() for file in needed):
        return LabelResult(source, earlier, skipped=True)
    image = decode_image(data, max_pixels=options.max_pixels)
    label = label_image(segmenter, manifest, image, options.view.read_ground(data), options)
    write_bytes(files["images"], encode_png(label.image))
    write_bytes(files["weights"], _encode_grey(label.weights))
    if options.overlay:
        write_bytes(files["overlays"], encode_png(draw_label(label, segmenter.classes)))
    write_bytes(files["masks"], encode_mask(label.mask, segmenter.classes))
    height, width = label.mask.shape
    record = LabelRecord(
        stem=source.stem,
        source=source.file.name,
        source_sha256=wanted[3],
        model_id=wanted[0],
        profile=wanted[1],
        options=wanted[2],
        width=width,
        height=height,
        gsd_m=label.gsd_m,
        class_fractions=class_fractions(label.mask, segmenter.classes),
        mean_weight=round(float(label.weights.mean()) / 100, 4),
        unlabelled_share=round(float((label.weights == 0).mean()), 4),
    )
    return LabelResult(source, record)


def _describe(options: LabelOptions) -> str:
    exposures = ", ".join(f"{factor:g}" for factor in options.exposures)
    return (
        f"exposures {exposures}; {'mirrored' if options.mirrored else 'not mirrored'}; agreement above "
        f"{options.min_agreement:g}; confidence above {options.min_confidence:g}; {options.view}".removesuffix("; ")
    )


def _encode_grey(values: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    pillow.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def _read_records(out: Path) -> dict[str, LabelRecord]:
    """Return the records of earlier labels by stem; empty if the file is missing or damaged."""
    try:
        content = json.loads((out / INDEX_NAME).read_bytes())
        return {stem: LabelRecord.model_validate(record) for stem, record in content["photographs"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError):
        return {}


def _write_records(records: Mapping[str, LabelRecord], out: Path) -> None:
    content = {"photographs": {stem: records[stem].model_dump(mode="json") for stem in sorted(records)}}
    write_text(out / INDEX_NAME, json.dumps(content, indent=1) + "\n")
