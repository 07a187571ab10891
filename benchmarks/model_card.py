"""Measure all figures of the model card for one bundle, and write a JSON file and a table.

    uv run python benchmarks/model_card.py BUNDLE --data DATA --split split.json --part val --out card

Each part runs only if its data is given:

- --data: dataset with colour masks. Metrics over all images, of each place (--by-place), and at other exposures. With
  --people, boxes in pixels of the native photographs, also the figures of people.
- --native: the same photographs in their own size, `images` and `masks_24` with the original 24 classes. Metrics at
  half, once and twice the size, with the ground resolution given.
- --labelled: folders with photographs of other places, `images` and `masks` of class ids; pixels with id 0 are
  unlabelled and not counted. Photographs whose stems differ only after the last underscore are a sequence. Metrics of
  each sequence.
- --regions: folders of full-size photographs and regions.json, polygons with obvious contents. Number of polygons whose
  class shares are within the limits.
- --landing: radii in pixels of the images in --data. Number of images with a landing site, and of first sites that
  contain anything unsafe, at these radii, with a clearance of one radius from people and none from other dangers; and
  of first sites that move by less than the radius if the image is compressed as JPEG of quality 90.
- --generated: dataset with generated water, whose originals are in --data. Share of that water by predicted class.

Use --part train with --images 10 during development: the held-out photographs are for finished candidates.
"""

import argparse
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from original_masks import read_original_mask
from PIL import Image as pillow

from droneseg.core.boxes import Boxes, read_boxes
from droneseg.core.camera import Ground, given_ground, read_ground
from droneseg.core.classes import BACKGROUND_ID, DEFAULT_CLASSES
from droneseg.core.errors import DatasetError
from droneseg.core.files import write_text
from droneseg.core.images import SUFFIXES, Image, decode_image, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import Confusion, compute_metrics, confusion
from droneseg.core.prediction import Prediction
from droneseg.core.runtimes import RuntimeName
from droneseg.core.settings import load_settings
from droneseg.data.dataset import Pair, list_pairs, read_true_mask
from droneseg.data.image_matching import find_matches
from droneseg.data.splits import read_split
from droneseg.evaluation.bootstrap import bootstrap_intervals
from droneseg.evaluation.landing_curve import LandingCurve
from droneseg.evaluation.landing_risk import summarise
from droneseg.evaluation.people import PersonShares, person_shares, scale_boxes, summarise_people
from droneseg.evaluation.regions import evaluate_region, read_regions
from droneseg.flows.landing_quality import find_outcomes, predict_cases
from droneseg.flows.probabilities import group_places
from droneseg.inference.batch import ViewOptions
from droneseg.inference.landing import LandingAnswer, LandingOptions, find_sites
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import resample, resample_mask
from droneseg.model.bundle import read_bundle

EXPOSURES = (0.35, 0.6, 1.6)
SIZES = (0.5, 1.0, 2.0)
RECALLS = (0.8, 0.9)
NATIVE_SIZE = (1000, 1500)
"""Height and width of the native photographs."""
NATIVE_GSD_M = 0.025 * 960 / 1500
"""Metres per pixel of the native photographs, if images of 960 pixels in width have 0.025."""
WATER_ID = DEFAULT_CLASSES.id_of("water")
LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")
_COLUMNS = (
    *("set", "photographs", "mIoU", "obst.", "water", "soft", "moving", "landing"),
    *("image-wise", "unsafe", "recall", "unsafe at recall 0.80", "0.90"),
)


@dataclass
class Scores:
    """Collects the pixel counts of a set of photographs for its metrics."""

    matrices: dict[str, Confusion] = field(default_factory=dict)
    curve: LandingCurve = field(default_factory=lambda: LandingCurve(DEFAULT_CLASSES))

    def add(
        self, stem: str, truth: Mask, mask: Mask, landing: NDArray[np.float32], *, ignore: int | None = None
    ) -> None:
        """Count the pixels of a photograph, except those of the class `ignore`."""
        self.curve.add(truth, landing, ignore=ignore)
        matrix = confusion(truth, mask, len(DEFAULT_CLASSES))
        if ignore is not None:
            matrix[ignore] = 0
        self.matrices[stem] = matrix

    def figures(self) -> dict[str, Any]:
        """Return the metrics; shares from 0 to 1."""
        scores = compute_metrics(self.matrices.values(), DEFAULT_CLASSES)
        intervals = bootstrap_intervals(np.stack(list(self.matrices.values())), DEFAULT_CLASSES)
        miou = intervals["miou"]
        return {
            "photographs": scores.images,
            "miou": scores.miou,
            "miou_interval": [miou.low, miou.high],
            "image_wise_miou": scores.image_wise_miou,
            "unsafe_landing_rate": scores.unsafe_landing_rate,
            "landing_recall": scores.landing_recall,
            **{f"unsafe_at_recall_{recall:.2f}": self.curve.unsafe_rate(recall) for recall in RECALLS},
            **{f"iou_{name}": value for name, value in scores.per_class_iou.items()},
        }


def main() -> None:
    """Measure the parts whose data is given, print the table, and write card.json and card.md."""
    options = parse_arguments()
    bundle = read_bundle(options.bundle)
    segmenter = BundleSegmenter(
        bundle,
        profile=options.profile,
        runtime=RuntimeName(options.runtime),
        cache=load_settings().cache_dir.expanduser() / "openvino",
    )
    card: dict[str, Any] = {
        "model": segmenter.model_id,
        "profile": segmenter.profile,
        "runtime": segmenter.runtime,
        "size_bytes": sum(record.size_bytes for record in bundle.manifest.files.values()),
    }
    pairs = choose_photographs(options) if options.data else []
    boxes = read_boxes(options.people) if options.people else {}
    if pairs:
        card["dataset"] = measure_dataset(segmenter, pairs, boxes, options)
    if options.landing:
        card["landing"] = measure_landing(segmenter, pairs, boxes, options.landing, options.gsd)
    if options.native:
        card["native"] = measure_native(segmenter, options.native, [pair.stem for pair in pairs], boxes)
    if options.labelled:
        card["labelled"] = {folder.name: measure_labelled(segmenter, folder) for folder in options.labelled}
    if options.regions:
        card["regions"] = {folder.name: measure_regions(segmenter, folder) for folder in options.regions}
    if options.generated:
        card["generated"] = measure_generated(segmenter, options.generated, pairs, options.gsd)
    lines = table(card)
    if options.out:
        write_text(options.out / "card.json", json.dumps(card, indent=1) + "\n")
        write_text(options.out / "card.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--runtime", default="auto", choices=list(RuntimeName))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--part", default="val", choices=("train", "val", "test"))
    parser.add_argument("--fold", type=int, help="validation part of this fold, from 0, instead of --part")
    parser.add_argument("--images", type=int, help="only the first images of the part")
    parser.add_argument("--gsd", type=float, help="metres per pixel of the images in --data; default: unknown")
    parser.add_argument("--by-place", action="store_true", help="match the images, and also measure each place")
    parser.add_argument("--no-exposures", action="store_true", help="leave out the other exposures")
    parser.add_argument("--people", type=Path, help="JSON: {stem: [[x0, y0, x1, y1], ...]}, native pixels")
    parser.add_argument("--landing", type=float, nargs="+", metavar="N", help="radii of landing sites, in pixels")
    parser.add_argument("--native", type=Path)
    parser.add_argument("--labelled", type=Path, nargs="+")
    parser.add_argument("--regions", type=Path, nargs="+")
    parser.add_argument("--generated", type=Path)
    parser.add_argument("--out", type=Path, help="folder for card.json and card.md")
    options = parser.parse_args()
    if (options.native or options.generated or options.landing) and not options.data:
        parser.error("--native, --generated and --landing need --data and the part to use")
    return options


def choose_photographs(options: argparse.Namespace) -> list[Pair]:
    """Return the pairs of the part or fold to measure."""
    listing = list_pairs(options.data)
    pairs = list(listing.pairs)
    if options.split:
        split = read_split(options.split, [pair.stem for pair in pairs])
        chosen = split.folds[options.fold].val if options.fold is not None else getattr(split, options.part)
        pairs = [pair for pair in pairs if pair.stem in set(chosen)]
    if not pairs:
        raise DatasetError(f"{listing.root} has no images of this part.")
    return pairs[: options.images]


# Parts of the card


def measure_dataset(
    segmenter: BundleSegmenter, pairs: Sequence[Pair], boxes: Boxes, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure a dataset: all images, people, places and other exposures."""
    ground = given_ground(options.gsd)
    whole, people = Scores(), list[PersonShares | None]()
    exposures = {} if options.no_exposures else {factor: Scores() for factor in EXPOSURES}
    for pair in pairs:
        image, truth = read_image(pair.image), read_true_mask(pair)
        prediction, landing = segmenter.landing_probability(image, ground)
        whole.add(pair.stem, truth, prediction.mask, landing)
        here = scale_boxes(boxes.get(pair.stem, ()), NATIVE_SIZE, truth.shape)
        people += person_shares(truth, prediction.mask, here, DEFAULT_CLASSES)
        for factor, scores in exposures.items():
            changed, its_landing = segmenter.landing_probability(expose(image, factor), ground)
            scores.add(pair.stem, truth, changed.mask, its_landing)
    result = whole.figures()
    if boxes:
        result["people"] = asdict(summarise_people(people))
    if exposures:
        result["exposures"] = {f"x{factor:g}": scores.figures() for factor, scores in exposures.items()}
    if options.by_place:
        result["places"] = measure_places(whole.matrices, pairs)
    return result


def expose(image: Image, factor: float) -> Image:
    """Return an image whose pixel values are multiplied by a factor."""
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def measure_places(matrices: Mapping[str, Confusion], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the metrics of each place, and the interval of the mIoU from bootstrap samples of places."""
    cache = load_settings().cache_dir.expanduser() / "scenes"
    images = {pair.stem: pair.files for pair in pairs}
    matches = find_matches(images, cache=cache, max_pixels=10**8, progress=lambda _stage, _done, _total: None)
    groups = group_places(list(images), matches)
    sums = np.stack([np.sum([matrices[stem] for stem in stems], axis=0) for stems in groups.values()])
    miou = bootstrap_intervals(sums, DEFAULT_CLASSES)["miou"]
    places = {
        name: {"photographs": stems, **_short(compute_metrics((matrices[stem] for stem in stems), DEFAULT_CLASSES))}
        for name, stems in groups.items()
    }
    return {"miou_interval": [miou.low, miou.high], "by_place": places}


def _short(scores: Any) -> dict[str, float | None]:
    return {
        "miou": scores.miou,
        "unsafe_landing_rate": scores.unsafe_landing_rate,
        "landing_recall": scores.landing_recall,
    }


def measure_native(segmenter: BundleSegmenter, folder: Path, stems: Iterable[str], boxes: Boxes) -> dict[str, Any]:
    """Measure native photographs at several sizes, with their ground resolution given."""
    found = {size: Scores() for size in SIZES}
    people = list[PersonShares | None]()
    for stem in stems:
        image = read_image(folder / "images" / f"{stem}.jpg")
        truth = read_original_mask(folder, stem)
        for size, scores in found.items():
            height, width = (round(side * size) for side in truth.shape)
            sized = resample(image, (height, width))
            prediction, landing = segmenter.landing_probability(sized, given_ground(NATIVE_GSD_M / size))
            mask = resample_mask(prediction.mask, truth.shape)
            at_truth = pillow.fromarray(landing).resize(truth.shape[::-1], pillow.Resampling.BILINEAR)
            scores.add(stem, truth, mask, np.asarray(at_truth))
            if size == 1:
                people += person_shares(truth, mask, boxes.get(stem, ()), DEFAULT_CLASSES)
    result: dict[str, Any] = {f"{size:g}x": scores.figures() for size, scores in found.items()}
    if boxes:
        result["people"] = asdict(summarise_people(people))
    return result


def measure_labelled(segmenter: BundleSegmenter, folder: Path) -> dict[str, Any]:
    """Measure each sequence of a folder; pixels of id 0 are not counted."""
    sequences: dict[str, Scores] = defaultdict(Scores)
    for file in photographs(folder / "images"):
        image, ground = read_photograph(file)
        truth = read_mask(folder / "masks" / f"{file.stem}.png", "ids", DEFAULT_CLASSES)
        prediction, landing = segmenter.landing_probability(image, ground)
        scores = sequences[file.stem.rpartition("_")[0] or file.stem]
        scores.add(file.stem, truth, prediction.mask, landing, ignore=BACKGROUND_ID)
    return {name: scores.figures() for name, scores in sequences.items()}


def measure_regions(segmenter: BundleSegmenter, folder: Path) -> dict[str, Any]:
    """Evaluate the regions of the full-size photographs in a folder, predicted with default options."""
    masks: dict[str, Mask] = {}
    files = {file.stem: file for file in photographs(folder)}
    evaluated = []
    for region in read_regions(folder / "regions.json"):
        if region.photo not in masks:
            image, ground = read_photograph(files[region.photo])
            masks[region.photo] = segmenter.segment(image, ground).mask
        evaluated.append(evaluate_region(region, masks[region.photo], DEFAULT_CLASSES))
    return {
        "right": sum(entry.right for entry in evaluated),
        "regions": [
            {"photo": entry.region.photo, "truth": entry.region.truth, "right": entry.right, "shares": entry.shares}
            for entry in evaluated
        ],
    }


def measure_generated(
    segmenter: BundleSegmenter, folder: Path, originals: Sequence[Pair], gsd_m: float | None
) -> dict[str, Any]:
    """Return the shares of generated water predicted as landing zone and as water.

    Generated water is the pixels that are water in the generated mask and not in the original one.
    """
    origins = json.loads((folder / "generated.json").read_text(encoding="utf-8"))
    by_stem = {pair.stem: pair for pair in originals}
    counts = np.zeros(len(DEFAULT_CLASSES), np.int64)
    used = 0
    for pair in list_pairs(folder).pairs:
        original = by_stem.get(origins.get(pair.stem, ""))
        if original is None:
            continue
        truth, before = read_true_mask(pair), read_true_mask(original)
        mask = segmenter.segment(read_image(pair.image), given_ground(gsd_m)).mask
        inside = (truth == WATER_ID) & (before != WATER_ID)
        counts += np.bincount(mask[inside], minlength=len(counts))
        used += 1
    total = max(int(counts.sum()), 1)
    return {
        "photographs": used,
        "called_landing": float(counts[LANDING_ID] / total),
        "called_water": float(counts[WATER_ID] / total),
    }


def measure_landing(
    segmenter: BundleSegmenter, pairs: Sequence[Pair], boxes: Boxes, radii: Sequence[float], gsd_m: float | None
) -> dict[str, Any]:
    """Evaluate the first landing site of each image at several radii, and its stability under JPEG compression."""
    sizes = {pair.stem: read_true_mask(pair).shape for pair in pairs}
    here = {stem: tuple(scale_boxes(boxes.get(stem, ()), NATIVE_SIZE, size)) for stem, size in sizes.items()}
    view = ViewOptions(gsd_m=gsd_m)
    cases = list(predict_cases(segmenter, pairs, here, view, 10**8))
    compressed = [_compress(segmenter, pair, gsd_m) for pair in pairs]
    policy = segmenter.landing_policy
    result: dict[str, Any] = {"policy": policy.model_dump(mode="json"), "radii": {}}
    for radius in radii:
        options = LandingOptions(radius_px=radius, clearance_px=0, clearance_people_px=radius)
        (outcomes,) = find_outcomes(cases, [policy], options)
        moved = [
            _distance(find_sites(case.prediction, policy, options), find_sites(again, policy, options))
            for case, again in zip(cases, compressed, strict=True)
        ]
        with_site = [distance for distance in moved if distance is not None]
        result["radii"][f"{radius:g}"] = {
            **asdict(summarise(outcomes, None, 0.05)),
            "stable": sum(distance < radius for distance in with_site),
        }
    return result


def _compress(segmenter: BundleSegmenter, pair: Pair, gsd_m: float | None) -> Prediction:
    """Predict an image after compression as JPEG of quality 90."""
    buffer = io.BytesIO()
    pillow.fromarray(read_image(pair.image)).save(buffer, "JPEG", quality=90)
    image = decode_image(buffer.getvalue(), max_pixels=10**8)
    return segmenter.segment(image, given_ground(gsd_m), landing=True)


def _distance(first: LandingAnswer, second: LandingAnswer) -> float | None:
    """Return how far the first site moves, in pixels; infinity if it is lost, None if there was none."""
    if not first.sites:
        return None
    if not second.sites:
        return math.inf
    return math.hypot(first.sites[0].x_px - second.sites[0].x_px, first.sites[0].y_px - second.sites[0].y_px)


def photographs(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder."""
    yield from (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)


def read_photograph(file: Path) -> tuple[Image, Ground]:
    """Read a photograph and the ground resolution in its metadata."""
    data = file.read_bytes()
    return decode_image(data, max_pixels=10**8), read_ground(data)


# Table


def table(card: Mapping[str, Any]) -> list[str]:
    """Return the card as lines of Markdown."""
    lines = [
        f"model {card['model']}, profile {card['profile']}, {card['runtime']}, {card['size_bytes'] / 1e6:.1f} MB",
        "",
    ]
    lines += [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for name, figures in _rows(card):
        lines.append(_row(name, figures))
    lines += [""]
    for name, people in _people(card):
        lines.append(
            f"people, {name}: {people['people']}; at least half landing zone {_percent(people['much_landing'])}, "
            f"under a tenth moving object {_percent(people['little_moving'])}"
        )
    places = card.get("dataset", {}).get("places")
    if places:
        low, high = places["miou_interval"]
        lines.append(
            f"places: {len(places['by_place'])}; 95 % interval of the mIoU over places {_number(low)} to "
            f"{_number(high)}"
        )
        for name, place in places["by_place"].items():
            lines.append(
                f"  {name}: {len(place['photographs'])} photographs, mIoU {_number(place['miou'])}, "
                f"unsafe {_percent(place['unsafe_landing_rate'])}, recall {_percent(place['landing_recall'])}"
            )
    for folder, found in card.get("regions", {}).items():
        lines.append(f"regions of {folder}: {found['right']} of {len(found['regions'])} right")
        for region in found["regions"]:
            shares = region["shares"]
            lines.append(
                f"  {'right' if region['right'] else 'WRONG'} {region['photo']} {region['truth']}: "
                f"water {_percent(shares['water'])}, soft {_percent(shares['soft-surfaces'])}, "
                f"landing {_percent(shares['landing-zones'])}"
            )
    for radius, found in card.get("landing", {}).get("radii", {}).items():
        lines.append(
            f"landing, radius {radius} px: {found['with_site']} of {found['photographs']} images have a site; unsafe "
            f"{_risk(found['unsafe'])}, person inside {_risk(found['people_inside'])}, no site but room for one "
            f"{_risk(found['false_abstentions'])}; stable {found['stable']} of {found['with_site']}"
        )
    if "generated" in card:
        water = card["generated"]
        lines.append(
            f"generated water, {water['photographs']} photographs: landing zone "
            f"{_percent(water['called_landing'])}, water {_percent(water['called_water'])}"
        )
    return lines


def _rows(card: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    dataset = card.get("dataset")
    if dataset:
        yield "dataset", dataset
        yield from ((f"exposure {name}", figures) for name, figures in dataset.get("exposures", {}).items())
    for name, figures in card.get("native", {}).items():
        if name != "people":
            yield f"native {name}", figures
    for sequences in card.get("labelled", {}).values():
        yield from sequences.items()


def _people(card: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("dataset", "native"):
        if "people" in card.get(name, {}):
            yield name, card[name]["people"]


def _row(name: str, figures: Mapping[str, Any]) -> str:
    cells = [
        name,
        str(figures["photographs"]),
        _number(figures["miou"]),
        *(_number(figures[f"iou_{entry.name}"]) for entry in DEFAULT_CLASSES.foreground),
        _number(figures["image_wise_miou"]),
        _percent(figures["unsafe_landing_rate"]),
        _percent(figures["landing_recall"]),
        *(_percent(figures[f"unsafe_at_recall_{recall:.2f}"]) for recall in RECALLS),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _risk(risk: Mapping[str, Any]) -> str:
    return f"{risk['failures']} of {risk['number']} (bound {_percent(risk['bound'])})"


if __name__ == "__main__":
    main()
