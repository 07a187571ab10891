"""The `droneseg evaluate` and `drift` commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Model, Part, Records, SplitFile, ValPart
from droneseg.cli.land import LandingSource, evaluate_landing
from droneseg.core.classes import Role
from droneseg.core.errors import DatasetError

if TYPE_CHECKING:
    from droneseg.core.class_files import MaskColours
    from droneseg.core.images import Image
    from droneseg.core.masks import MaskKind
    from droneseg.evaluation.evaluate import Evaluation


class TruthKind(StrEnum):
    """Encoding of ground truth masks."""

    COLOURS = "colours"
    IDS = "ids"
    LABELS = "labels"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.", show_default=False)],
    truth: Annotated[
        Path | None, typer.Argument(help="Folder of ground truth masks, or a dataset folder.", show_default=False)
    ] = None,
    truth_kind: Annotated[
        TruthKind | None,
        typer.Option(
            "--truth",
            help="Encoding of the ground truth masks: class colours, class ids, or labels of nnU-Net's datasets. "
            "Default: labels beside a dataset.json, otherwise colours.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a report with confidence intervals and plots to this folder.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Write the metrics to this JSON file, for DVC.")] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with boxes around people, {stem: [[x0, y0, x1, y1], ...]}, to measure how well they are "
            "recognised; in pixels."
        ),
    ] = None,
    classes: console.Classes = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report if it exists.")] = False,
    landing: Annotated[
        bool,
        typer.Option(
            "--landing",
            help="Evaluate landing sites: PREDICTIONS is a dataset, or a folder that `droneseg probabilities` wrote.",
        ),
    ] = False,
    model: Model = None,
    split: SplitFile = None,
    part: ValPart = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    radius: console.Radius = None,
    radius_px: console.RadiusPx = None,
    clearance: console.Clearance = None,
    clearance_px: console.ClearancePx = None,
    clearance_people: console.ClearancePeople = None,
    clearance_people_px: console.ClearancePeoplePx = None,
    by_place: Annotated[
        bool,
        typer.Option(
            "--by-place", help="Match the photographs to group them by place, and also count failures by place."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Compare predicted masks with ground truth masks.

    Masks are matched by file name; as in nnU-Net, that of NAME_0000.png may be NAME.png. With --landing, the landing
    sites of photographs are compared with their masks; the options from --model to --by-place only apply to landing
    sites.
    """
    if landing:
        if truth is not None:
            raise typer.BadParameter("is not used with --landing; PREDICTIONS is the dataset", param_hint="TRUTH")
        view = console.view_options(gsd, height, plain=False)
        options = console.landing_options(
            radius_m=radius,
            radius_px=radius_px,
            clearance_m=clearance,
            clearance_px=clearance_px,
            clearance_people_m=clearance_people,
            clearance_people_px=clearance_people_px,
        )
        part_name = console.choose_part(split, part, default=Part.VAL)
        source = LandingSource(predictions, model, split, part_name, view, boxes, by_place)
        evaluate_landing(source, options, report, force=force, json=json)
        return
    only_landing = {"--model": model, "--split": split, "--part": part, "--gsd": gsd, "--height": height}
    only_landing |= {"--radius": radius, "--radius-px": radius_px, "--clearance": clearance}
    only_landing |= {"--clearance-px": clearance_px, "--clearance-people": clearance_people}
    only_landing |= {"--clearance-people-px": clearance_people_px, "--by-place": by_place or None}
    if useless := [flag for flag, value in only_landing.items() if value is not None]:
        raise typer.BadParameter("requires --landing", param_hint=", ".join(useless))
    if truth is None:
        raise typer.BadParameter("is missing; pass a folder of masks", param_hint="TRUTH")
    from droneseg.core.boxes import read_boxes
    from droneseg.core.files import check_writable
    from droneseg.evaluation.evaluate import evaluate_folder
    from droneseg.evaluation.people import evaluate_people
    from droneseg.evaluation.report import REPORT_MARKER

    max_pixels = console.settings().max_pixels
    by_image = read_boxes(boxes) if boxes else {}
    masks = _mask_folder(truth, predictions)
    kind = truth_kind.value if truth_kind else _kind_of(masks)
    if report:
        check_writable(report, marker=REPORT_MARKER, replace=force)
    colours = _mask_colours(masks, classes)
    with console.progress_bar("masks") as progress:
        evaluation = evaluate_folder(
            predictions,
            masks,
            colours.classes,
            truth_kind=kind,
            colours=colours,
            max_pixels=max_pixels,
            progress=progress,
        )
    if scores:
        _write_scores(evaluation, scores)
    if report:
        _write_report(evaluation, report, predictions, masks, kind)
    people = evaluate_people(evaluation, by_image, truth_kind=kind, max_pixels=max_pixels)
    if json:
        console.show_json(_evaluation_json(evaluation) | ({"people": asdict(people)} if boxes else {}))
        return
    _show_evaluation(evaluation)
    if boxes:
        console.out().print(
            f"{people.people} people   at least half landing zone {console.percent(people.much_landing)}   "
            f"less than a tenth moving object {console.percent(people.little_moving)}"
        )
        if not evaluation.classes.has(Role.MOVING):
            console.err().print("note: no class has the role moving, so the boxes around people are not evaluated")
    if report:
        console.out().print(f"report: {report / 'report.md'}", markup=False)


def _mask_folder(truth: Path, predictions: Path) -> Path:
    """Return the folder of masks: `truth` itself if it contains masks, otherwise that of the dataset.

    In a raw dataset of nnU-Net, it is the folder of the test part if that has a mask for one of the predictions.
    """
    from droneseg.core.image_files import CASE_SUFFIXES
    from droneseg.data.dataset import RAW, RAW_TEST, find_dataset

    if not truth.is_dir() or any(file.suffix.lower() in CASE_SUFFIXES for file in truth.iterdir()):
        return truth
    location = find_dataset(truth)
    if location.layout == RAW and RAW_TEST.is_in(location.root) and predictions.is_dir():
        test = RAW_TEST.masks_in(location.root)
        stems = {file.stem.removesuffix("_0000") for file in predictions.iterdir()}
        if stems & {file.stem for file in test.iterdir()}:
            return test
    return location.masks


def _kind_of(masks: Path) -> MaskKind:
    """Return the encoding of the masks of a dataset; those beside nnU-Net's dataset.json are labels."""
    from droneseg.core.class_files import DESCRIPTION_NAME

    return "labels" if (masks.parent / DESCRIPTION_NAME).is_file() else "colours"


def _mask_colours(masks: Path, file: Path | None) -> MaskColours:
    """Return the class table of the masks, and which pixels have no label: of a file, else of their dataset."""
    from droneseg.core.class_files import find_classes, read_classes
    from droneseg.data.dataset import evaluated_colours

    return read_classes(file) if file else evaluated_colours(masks.parent, find_classes(masks.parent))


def _write_report(evaluation: Evaluation, report: Path, predictions: Path, truth: Path, truth_kind: MaskKind) -> None:
    from droneseg.evaluation.report import write_report

    max_pixels = console.settings().max_pixels
    write_report(
        evaluation,
        report,
        title=f"Quality of {predictions.name}",
        truth_kind=truth_kind,
        max_pixels=max_pixels,
        find_image=_image_finder(truth, max_pixels),
        replace=True,  # the folder was checked before the evaluation
    )


def _image_finder(masks: Path, max_pixels: int) -> Callable[[str], Image | None]:
    """Return a function that reads the image of a mask from its dataset, by stem; it returns None if there is none."""
    from droneseg.data.dataset import list_pairs, read_pair_image

    try:
        pairs = {pair.stem: pair for pair in list_pairs(masks).pairs}
    except DatasetError:
        return lambda _stem: None

    def find_image(stem: str) -> Image | None:
        return read_pair_image(pairs[stem], max_pixels=max_pixels) if stem in pairs else None

    return find_image


def _write_scores(evaluation: Evaluation, file: Path) -> None:
    from json import dumps

    from droneseg.core.files import write_text

    write_text(file, dumps(vars(evaluation.scores), indent=2) + "\n")


def _evaluation_json(evaluation: Evaluation) -> dict[str, object]:
    return {
        "scores": vars(evaluation.scores),
        "image_miou": {image.stem: image.miou for image in evaluation.images},
        "without_prediction": evaluation.without_prediction,
        "landing_note": evaluation.classes.landing_note,
    }


def _show_evaluation(evaluation: Evaluation) -> None:
    from droneseg.evaluation.report import background_note

    scores = evaluation.scores
    image_wise = scores.image_wise_dice
    rows = [
        [name, *(console.number(values[name]) for values in (scores.per_class_iou, scores.per_class_dice, image_wise))]
        for name in scores.per_class_iou
    ]
    columns = ["class", "IoU", "Dice", "mean Dice of images"]
    console.out().print(console.table(f"{scores.images} images", columns, rows))
    console.out().print(
        f"mIoU {console.number(scores.miou)}   image-wise mIoU {console.number(scores.image_wise_miou)}"
    )
    console.out().print(f"{_landing_figures(evaluation)}pixel accuracy {console.percent(scores.pixel_accuracy)}")
    for note in filter(None, (evaluation.classes.landing_note, background_note(scores.confusion, evaluation.classes))):
        console.err().print(f"note: {note}", markup=False)
    if missing := len(evaluation.without_prediction):
        console.err().print(f"note: {missing} ground truth masks have no prediction and are not counted")


def _landing_figures(evaluation: Evaluation) -> str:
    """Return the landing figures, each followed by spaces; empty without a landing role."""
    if not evaluation.classes.has(Role.LANDING):
        return ""
    scores = evaluation.scores
    return (
        f"unsafe landing rate {console.percent(scores.unsafe_landing_rate)}   "
        f"landing recall {console.percent(scores.landing_recall)}   "
    )


def drift(
    number: Annotated[
        int, typer.Option("--n", min=20, max=20_000, help="Maximum number of recent records to compare.")
    ] = 200,
    model: Model = None,
    records: Records = None,
    reports: Annotated[
        str | None, typer.Option(help="Folder or URL for the report; default: $DRONESEG_REPORTS_URL.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Also write the result to this file, for the Prometheus textfile collector.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare recent predictions with the validation images.

    Writes an HTML report and a JSON file to --reports. The exit code is 0 whether or not drift is found.
    """
    from droneseg.monitoring.drift_report import make_report

    settings = console.settings()
    with console.spinner("reading records and writing the report"):
        report = make_report(
            model or settings.model, records or settings.records_url, reports or settings.reports_url, number
        )
    if metrics:
        from droneseg.monitoring.prometheus import write_drift

        write_drift(metrics, drifted=report.drifted, share=report.share)
    if json:
        console.show_json(report.model_dump())
        return
    console.out().print(report.message, markup=False)
    console.out().print(f"report: {report.url}", markup=False)
