"""Class probability maps of photographs, out of fold or of one model, for calibration and distillation.

A folder of maps has one file `STEM.npz` for each photograph, and `index.json`:

- `probabilities`: shape (C, H, W) of the photograph, dtype uint8; a byte b stands for b / 255, so the error of a
  probability is at most 0.002.
- `log_probabilities`: shape (C, h, w), dtype float16: natural logarithms at every 16th row and column of the
  photograph as it was resampled for the model, for fits that need small probabilities.
- `truth`: true class ids of the same pixels, shape (h, w), dtype uint8, if there is a true mask.
- `record`: JSON with the content of `MapRecord`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable
from droneseg.core.errors import ConfigurationError, DatasetError, optional_import
from droneseg.core.files import write_bytes, write_text
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import Image, decode_image
from droneseg.core.masks import Mask
from droneseg.core.metrics import Confusion, SegmentationMetrics, compute_metrics, confusion
from droneseg.data.dataset import Pair
from droneseg.data.image_matching import Match
from droneseg.evaluation.bootstrap import Interval, bootstrap_intervals
from droneseg.flows.output_folder import PhotographResult, require_output_folder, result_of
from droneseg.inference.batch import DEFAULT_VIEW, ViewOptions
from droneseg.inference.probability_map import SAMPLE_STEP, ProbabilityMap, QuantisedProbabilities
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.sliding_window import nonzero_box
from droneseg.inference.unlike_training import features_of
from droneseg.inference.views import resample, resample_mask
from droneseg.model.bundle import ClassEntry, class_entries, table_of

INDEX_NAME = "index.json"
_REPORTED_METRICS = ("miou", "image_wise_miou", "unsafe_landing_rate", "landing_recall")


class MapRecord(BaseModel):
    """Facts about the map of one photograph.

    Attributes:
        stem: Stem of the photograph.
        file: Name of the map's file.
        fold: Number of the fold whose model predicted the photograph, from 0; None for a single model.
        model_id: Id of the model.
        profile: Profile of the bundle.
        view: How the photograph was presented to the model.
        temperature: Number that logits were divided by before the softmax.
        source_sha256: SHA-256 of the photograph's file.
        truth_sha256: SHA-256 of the file of its true mask; None if there is none.
        width: Width of the photograph in pixels.
        height: Height of the photograph in pixels.
        seen_width: Width of the photograph as resampled for the model.
        seen_height: Height of the photograph as resampled for the model.
        gsd_m: Metres per pixel of the photograph; None if unknown.
        views: Whether several views of the photograph were combined.
        confidence: Mean probability of the predicted class.
        statistics: Statistics of the resampled photograph, see `image_statistics`.
        features: Features of the check for photographs unlike the training photographs, by name. `disagreement` is that
            of the resampled photograph with a copy reduced fourfold.
        confusion: Pixel counts, rows are true classes, columns predicted ones; None if there is no true mask.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    stem: str
    file: str
    fold: int | None
    model_id: str
    profile: str
    view: ViewOptions
    temperature: float
    source_sha256: str
    truth_sha256: str | None
    width: int
    height: int
    seen_width: int
    seen_height: int
    gsd_m: float | None
    views: bool
    confidence: float
    statistics: dict[str, float]
    features: dict[str, float]
    confusion: list[list[int]] | None

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that the map depends on."""
        return self.model_id, self.profile, self.view, self.temperature, self.source_sha256, self.truth_sha256


class ProbabilityIndex(BaseModel):
    """Content of `index.json`.

    Attributes:
        format_version: Version of this format.
        kind: "out of fold" if each photograph was predicted by a model that was not trained on its place, otherwise
            "one model".
        data: Name of the dataset or the folder of photographs.
        classes: Class table of the models.
        split: Name of the split file; None without one.
        profile: Profile of the bundles; None for the default profile of each.
        temperature: Number that logits were divided by before the softmax.
        models: Id of the model by fold; "all" for a single model.
        photographs: Record of each photograph by stem.
        dropped: Photographs that each fold drops, by fold.
        never_validated: Photographs that are in no validation part of the folds.
        failed: Error message by stem.
        places: Stems by place; empty if the photographs were not matched.
        complete: Whether all photographs were processed.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = 1
    kind: Literal["out of fold", "one model"]
    data: str
    classes: tuple[ClassEntry, ...] = class_entries(DEFAULT_CLASSES)
    split: str | None
    profile: str | None
    temperature: float
    models: dict[str, str]
    photographs: dict[str, MapRecord] = Field(default_factory=dict)
    dropped: dict[str, list[str]] = Field(default_factory=dict)
    never_validated: list[str] = Field(default_factory=list)
    failed: dict[str, str] = Field(default_factory=dict)
    places: dict[str, list[str]] = Field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class StoredMap:
    """A map that was read from its file.

    Attributes:
        record: Facts about the map.
        probabilities: Shape (C, H, W), dtype uint8; a byte b stands for b / 255.
        log_probabilities: Shape (C, h, w), dtype float16; natural logarithms at sampled pixels.
        truth: True class ids of the sampled pixels, shape (h, w), dtype uint8; None without a true mask.
        mask: The true mask, shape (H, W), dtype uint8; None without one, and in maps of earlier versions.
    """

    record: MapRecord
    probabilities: QuantisedProbabilities
    log_probabilities: NDArray[np.float16]
    truth: Mask | None
    mask: Mask | None


@dataclass(frozen=True)
class MapTask:
    """A photograph to predict.

    Attributes:
        image: Files of the photograph.
        pair: The photograph with its true mask; None without one.
        fold: Number of the fold; None for a single model.
    """

    image: ImageFiles
    pair: Pair | None = None
    fold: int | None = None

    @property
    def stem(self) -> str:
        """Stem of the photograph."""
        return self.image.stem


@dataclass(frozen=True)
class MapOptions:
    """Options of the maps.

    Attributes:
        max_pixels: Largest accepted photograph, in pixels.
        view: How the photographs are presented to the model.
        temperature: Number that logits are divided by before the softmax. At 1, the maps are uncalibrated.
        force: Whether to also predict photographs whose map is up to date.
    """

    max_pixels: int
    view: ViewOptions = DEFAULT_VIEW
    temperature: float = 1.0
    force: bool = False


MapResult: TypeAlias = PhotographResult[MapRecord]
"""Result for one photograph."""


def require_map_folder(out: Path) -> None:
    """Check that `out` is a new folder or one of maps.

    Raises:
        OutputExistsError: If it is a file, or a folder with other content.
    """
    require_output_folder(out, INDEX_NAME, "maps")


def write_maps(
    segmenter: BundleSegmenter, tasks: Sequence[MapTask], out: Path, options: MapOptions
) -> Iterator[MapResult]:
    """Predict photographs and write the map of each to `out`.

    A photograph is skipped if `out` has its map of the same model, profile, options and files. Maps are written
    atomically, so the work can be interrupted at any time. A photograph that fails does not affect the others.

    Args:
        segmenter: Segmenter of the model.
        tasks: Photographs with distinct stems.
        out: Existing folder of the maps.
        options: Options of the maps.

    Yields:
        One result per photograph.
    """
    for task in tasks:
        yield result_of(task.image, partial(_write_map, segmenter, task, out, options))


def _write_map(segmenter: BundleSegmenter, task: MapTask, out: Path, options: MapOptions) -> MapResult:
    data = task.image.read(max_pixels=options.max_pixels)
    truth_data = task.pair.mask.read_bytes() if task.pair else None
    file = out / f"{task.stem}.npz"
    wanted = (
        segmenter.model_id,
        segmenter.profile,
        options.view,
        options.temperature,
        _sha256(data),
        _sha256(truth_data) if truth_data is not None else None,
    )
    earlier = None if options.force else _read_record(file)
    if earlier and (*earlier.identity, earlier.fold) == (*wanted, task.fold):
        return MapResult(task.image, earlier, skipped=True)
    return MapResult(task.image, _predict_map(segmenter, task, options, file, (data, truth_data)))


def _predict_map(
    segmenter: BundleSegmenter, task: MapTask, options: MapOptions, file: Path, content: tuple[bytes, bytes | None]
) -> MapRecord:
    """Predict a photograph and write its map to `file`; `content` is the photograph and its true mask."""
    data, truth_data = content
    image = decode_image(data, max_pixels=options.max_pixels)
    truth = (
        task.pair.encoding.decode(truth_data, max_pixels=options.max_pixels)[0]
        if task.pair and truth_data is not None
        else None
    )
    ground = options.view.read_ground(data)
    prediction, probabilities, seen = segmenter.probabilities(
        image, ground, plain=options.view.plain, temperature=options.temperature
    )
    seen_height, seen_width = seen.values.shape[1:]
    record = MapRecord(
        stem=task.stem,
        file=file.name,
        fold=task.fold,
        model_id=segmenter.model_id,
        profile=segmenter.profile,
        view=options.view,
        temperature=options.temperature,
        source_sha256=_sha256(data),
        truth_sha256=None if truth_data is None else _sha256(truth_data),
        width=image.shape[1],
        height=image.shape[0],
        seen_width=seen_width,
        seen_height=seen_height,
        gsd_m=ground.gsd_m,
        views=prediction.disagreement is not None,
        confidence=prediction.confidence,
        statistics=prediction.statistics,
        features=features_of(prediction.statistics, _disagreement(segmenter, image, seen)),
        confusion=None if truth is None else confusion(truth, prediction.mask, len(segmenter.classes)).tolist(),
    )
    _save(file, record, probabilities, seen, truth, nonzero_box(image))
    return record


def _disagreement(segmenter: BundleSegmenter, image: Image, seen: ProbabilityMap) -> float | None:
    """Return the disagreement of the resampled photograph with its smallest view; None if no views are combined."""
    height, width = seen.values.shape[1:]
    resampled = resample(image[nonzero_box(image)], (height, width))
    return segmenter.disagreement_when_reduced(resampled, seen.values.astype(np.float32))


def _save(
    file: Path,
    record: MapRecord,
    probabilities: QuantisedProbabilities,
    seen: ProbabilityMap,
    truth: Mask | None,
    box: tuple[slice, slice],
) -> None:
    """Write a map; `truth` is the true mask."""
    arrays: dict[str, NDArray[Any]] = {
        "probabilities": probabilities,
        "log_probabilities": seen.samples,
        "record": np.array(record.model_dump_json()),
    }
    if truth is not None:
        height, width = seen.values.shape[1:]
        cropped = truth[box]  # without the black border that is cropped for the model
        arrays["truth"] = resample_mask(cropped, (height, width))[::SAMPLE_STEP, ::SAMPLE_STEP]
        arrays["mask"] = truth
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs accept no other keywords
    write_bytes(file, buffer.getvalue())


def read_map(file: Path) -> StoredMap:
    """Read a map.

    Raises:
        DatasetError: If the file is missing or damaged.
    """
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            return StoredMap(
                MapRecord.model_validate_json(str(stored["record"])),
                stored["probabilities"],
                stored["log_probabilities"],
                stored.get("truth"),
                stored.get("mask"),
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DatasetError(f"{file} is not a probability map: {error}. Run `droneseg probabilities` again.") from error


def _read_record(file: Path) -> MapRecord | None:
    """Return the record of a map; None if the file is missing or damaged."""
    try:
        return read_map(file).record if file.is_file() else None
    except DatasetError:
        return None


def write_index(index: ProbabilityIndex, out: Path) -> None:
    """Write `index.json`."""
    write_text(out / INDEX_NAME, json.dumps(index.model_dump(mode="json"), indent=1) + "\n")


def read_index(folder: Path) -> ProbabilityIndex:
    """Read the index of a folder of maps.

    Raises:
        DatasetError: If there is none, or it is malformed.
    """
    file = folder / INDEX_NAME
    try:
        return ProbabilityIndex.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{folder} has no maps. Write them with `droneseg probabilities`.") from error
    except ValidationError as error:
        raise DatasetError(f"{file} is malformed. Run `droneseg probabilities` again.") from error


def group_places(stems: Sequence[str], matches: Sequence[Match]) -> dict[str, list[str]]:
    """Return the places of photographs, largest first: the connected components of their matches, by name.

    Args:
        stems: Photographs to group.
        matches: Matches between photographs; those with other photographs are ignored.

    Raises:
        MissingDependencyError: If networkx is not installed.
    """
    with optional_import("networkx", "train"):
        import networkx as nx
    graph = nx.Graph()
    graph.add_nodes_from(stems)
    chosen = set(stems)
    graph.add_edges_from((m.first, m.second) for m in matches if m.first in chosen and m.second in chosen)
    components = sorted((sorted(part) for part in nx.connected_components(graph)), key=lambda part: (-len(part), part))
    digits = len(str(len(components)))
    return {f"place {number:0{digits}d}": part for number, part in enumerate(components, start=1)}


@dataclass(frozen=True)
class GroupScores:
    """Metrics of a group of photographs: a fold, or a place.

    Attributes:
        photographs: Number of photographs.
        miou: Mean IoU; None if no class but the background occurs.
        unsafe_landing_rate: Share of the pixels predicted as landing zone that are unsafe; None without such pixels.
        landing_recall: Share of the true landing zones that are predicted as such; None without landing zones.
    """

    photographs: int
    miou: float | None
    unsafe_landing_rate: float | None
    landing_recall: float | None


@dataclass(frozen=True)
class MapScores:
    """Metrics of all maps with a true mask.

    Attributes:
        scores: Metrics over all photographs.
        intervals: 95 % intervals by metric, from bootstrap samples of places if they are known, else of photographs.
        by_fold: Metrics by fold.
        by_place: Metrics by place.
        miou_quartiles: Smallest value, quartiles and largest value of the mIoU over places; None without places.
    """

    scores: SegmentationMetrics
    intervals: dict[str, Interval]
    by_fold: dict[str, GroupScores]
    by_place: dict[str, GroupScores]
    miou_quartiles: tuple[float, float, float, float, float] | None


def score_maps(index: ProbabilityIndex) -> MapScores | None:
    """Return the metrics of the photographs that have a true mask; None if there are none."""
    matrices = {
        stem: np.array(record.confusion, np.int64)
        for stem, record in index.photographs.items()
        if record.confusion is not None
    }
    if not matrices:
        return None
    folds: dict[str, list[str]] = defaultdict(list)
    for stem in matrices:
        number = index.photographs[stem].fold
        if number is not None:
            folds[str(number)].append(stem)
    classes = table_of(index.classes)
    places = {name: [stem for stem in stems if stem in matrices] for name, stems in index.places.items()}
    by_place = _by_group(places, matrices, classes)
    units = [np.sum([matrices[stem] for stem in stems], axis=0) for stems in places.values() if stems]
    intervals = bootstrap_intervals(np.stack(units or list(matrices.values())), classes)
    mious = [scores.miou for scores in by_place.values() if scores.miou is not None]
    quartiles = tuple(float(value) for value in np.quantile(mious, (0, 0.25, 0.5, 0.75, 1))) if mious else None
    return MapScores(
        scores=compute_metrics(matrices.values(), classes),
        intervals={
            name: intervals[name]
            for name in _REPORTED_METRICS
            if name in intervals and not (units and name == "image_wise_miou")
        },
        by_fold=_by_group(dict(sorted(folds.items())), matrices, classes),
        by_place=by_place,
        miou_quartiles=quartiles,  # type: ignore[arg-type]  # five values, as there are five quantiles
    )


def _by_group(
    groups: Mapping[str, Sequence[str]], matrices: Mapping[str, Confusion], classes: ClassTable
) -> dict[str, GroupScores]:
    result = {}
    for name, stems in groups.items():
        if stems:
            scores = compute_metrics((matrices[stem] for stem in stems), classes)
            result[name] = GroupScores(len(stems), scores.miou, scores.unsafe_landing_rate, scores.landing_recall)
    return result


@dataclass(frozen=True)
class FoldModel:
    """The model of a fold.

    Attributes:
        fold: Number of the fold; None for a single model.
        open: Function that starts the segmenter. Only one segmenter is in memory at a time.
        model_id: Id of the model.
        classes: Classes that it predicts.
    """

    fold: int | None
    open: Callable[[], BundleSegmenter]
    model_id: str
    classes: ClassTable


def make_maps(
    models: Sequence[FoldModel],
    tasks: Sequence[MapTask],
    index: ProbabilityIndex,
    out: Path,
    options: MapOptions,
    on_result: Callable[[MapResult, int], None] = lambda _result, _total: None,
) -> ProbabilityIndex:
    """Write the maps of all photographs, and `index.json`.

    Args:
        models: Model of each fold.
        tasks: Photographs of all folds.
        index: Index without photographs.
        out: Folder of the maps; created if missing.
        options: Options of the maps.
        on_result: Callback with each result and the number of photographs.

    Returns:
        The complete index.

    Raises:
        ConfigurationError: If a fold has no model.
        OutputExistsError: If `out` contains other files.
    """
    without = {task.fold for task in tasks} - {model.fold for model in models}
    if without:
        raise ConfigurationError(f"There is no model for fold {', '.join(map(str, sorted(without, key=str)))}.")
    require_map_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / INDEX_NAME).is_file():
        write_index(index, out)
    records: dict[str, MapRecord] = {}
    failed: dict[str, str] = {}
    for model in models:
        chosen = [task for task in tasks if task.fold == model.fold]
        for result in write_maps(model.open(), chosen, out, options) if chosen else ():
            if result.record:
                records[result.stem] = result.record
            else:
                failed[result.stem] = result.error or ""
            on_result(result, len(tasks))
    done = index.model_copy(update={"photographs": dict(sorted(records.items())), "failed": failed, "complete": True})
    write_index(done, out)
    return done


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
