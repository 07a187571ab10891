"""The `droneseg export`, `predict`, `evaluate` and `drift` commands."""

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Part
from droneseg.core.settings import RuntimeName

if TYPE_CHECKING:
    from droneseg.core.images import Image
    from droneseg.evaluation.evaluate import Evaluation
    from droneseg.model.bundle import Bundle
    from droneseg.nnunet.paths import NnunetPaths


def export(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Model folder of nnU-Net; default: the only one below nnUNet_results."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; default: $DRONESEG_MODEL.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in each fold.")] = "checkpoint_final.pth",
    fold: Annotated[list[int] | None, typer.Option(help="Fold to take, repeatable; default: all, averaged.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Add a calibrated INT8 network as a profile.")] = False,
    default_profile: Annotated[str, typer.Option(help="Profile used unless another is named.")] = "fast",
    licence: Annotated[
        str, typer.Option("--license", help="Terms of the weights.")
    ] = "the terms of the data it was trained on",
    images: Annotated[int, typer.Option(min=4, help="Photographs to measure on, at most.")] = 8,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a checkpoint that pickles code: only if you know where it is from.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Make a bundle of a trained model: no pickle, no torch.

    The exported network is held against the trained one, and every profile is measured on the validation part.
    """
    from droneseg.core.files import check_writable
    from droneseg.model.bundle import MANIFEST_NAME

    settings = console.settings()
    target = out or settings.model
    check_writable(target, marker=MANIFEST_NAME, replace=force)
    console.require_nnunet()
    from droneseg.flows.export import export_model
    from droneseg.nnunet.paths import NnunetPaths

    layout = NnunetPaths.from_settings(settings)
    model_folder = source or _only_model(layout)
    bundle = export_model(
        model_folder,
        layout,
        target,
        checkpoint=checkpoint,
        folds=tuple(fold) if fold else None,
        trust=trust,
        int8=int8,
        default_profile=default_profile,
        licence=licence,
        images=images,
        report=lambda step: console.err().print(f"{step} ...", markup=False),
    )
    _send(bundle, model_folder)
    if json:
        console.show_json(bundle.manifest.model_dump(mode="json"))
        return
    _show(bundle)


def _show(bundle: "Bundle") -> None:
    manifest = bundle.manifest
    rows = [
        [
            f"{name}{' (default)' if name == manifest.default_profile else ''}",
            console.percent(profile.figures["agreement_with_exact"], 2),
            console.figure(profile.figures["miou"]),
        ]
        for name, profile in manifest.profiles.items()
    ]
    source_of_figures = (manifest.quality or {}).get("data", "")
    console.out().print(console.table(f"on {source_of_figures}", ["profile", "as exact", "mIoU"], rows))
    console.out().print(f"{bundle.folder}: model {bundle.model_id}, {manifest.description}", markup=False)


def _send(bundle: "Bundle", model_folder: Path) -> None:
    """Send the bundle to W&B if the training was tracked; whether or not that works, the bundle is made."""
    from droneseg.core.errors import DronesegError
    from droneseg.model.bundle import MANIFEST_NAME
    from droneseg.nnunet.wandb_logger import choose_mode, send_bundle

    key = console.settings().wandb_api_key
    choose_mode("auto", api_key=key.get_secret_value() if key else None)
    provenance = bundle.manifest.provenance
    try:
        run = send_bundle(
            model_folder / f"fold_{provenance.folds[0]}",
            bundle.folder,
            [MANIFEST_NAME, *bundle.manifest.files],
            bundle.manifest.model_dump(mode="json"),
            name=f"bundle-{provenance.configuration}",
        )
    except DronesegError as error:
        console.err().print(f"the bundle was not sent to W&B: {error}", markup=False)
        return
    if run:
        console.err().print(f"the bundle is an artifact of run {run} of W&B", markup=False)


def _only_model(layout: "NnunetPaths") -> Path:
    """Return the only trained model there is: nothing is chosen in silence."""
    from droneseg.core.errors import ModelError
    from droneseg.nnunet.paths import trained_folders

    found = trained_folders(layout.results)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(f"No trained model below {layout.results}. Train one with `droneseg train`.")
    listed = "".join(f"\n  - {folder}" for folder in found)
    raise ModelError(f"Several trained models below {layout.results}. Name one with --from:{listed}")


def predict(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Photographs, folders, datasets or glob patterns.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the masks, STEM.png each.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="Model bundle; default: $DRONESEG_MODEL.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="exact: nnU-Net's own answer, mirrored; fast: one pass; int8 if the bundle has it. "
            "Default: $DRONESEG_PROFILE, or as the bundle says."
        ),
    ] = None,
    runtime: Annotated[
        RuntimeName | None, typer.Option(help="What runs the network; default: $DRONESEG_RUNTIME.")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="Take only a part of this split file.")] = None,
    part: Annotated[Part | None, typer.Option(help="Which part of the split; default: test.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write STEM_overlay.png pictures too.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Predict again what was made before, and replace other masks.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Predict the masks of photographs.

    One bad file is reported and the others go on; exit code 1 at the end.
    """
    from droneseg.inference.batch import find_inputs, predict_files, require_output
    from droneseg.inference.segmenter import load_segmenter

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    settings = console.settings()
    sources = find_inputs([_photographs(given) for given in inputs])
    if split:
        from droneseg.data.splits import read_split

        chosen = set(getattr(read_split(split, [source.stem for source in sources]), (part or Part.TEST).value))
        sources = [source for source in sources if source.stem in chosen]
    require_output(sources, out, overlay=overlay, force=force)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
    results = []
    with console.progress("photographs") as progress:
        for result in predict_files(
            segmenter, sources, out, overlay=overlay, force=force, max_pixels=settings.max_pixels
        ):
            results.append(result)
            progress(len(results), len(sources))
            if result.error:
                console.err().print(f"failed: {result.source}: {result.error}", markup=False)
    counts = Counter(result.status for result in results)
    if json:
        console.show_json({"model_id": segmenter.model_id, "results": [vars(result) for result in results]})
    else:
        summary = ", ".join(
            f"{counts[status]} {status}" for status in ("predicted", "skipped", "failed") if counts[status]
        )
        how = f"model {segmenter.model_id}, {segmenter.profile}, {segmenter.runtime}"
        console.out().print(f"{out}: {summary} ({how})", markup=False)
    if counts["failed"]:
        raise typer.Exit(1)


def _photographs(given: str) -> str:
    """Return the folder of photographs of a dataset; anything else as it was given."""
    from droneseg.core.errors import DatasetError
    from droneseg.core.images import SUFFIXES
    from droneseg.data.dataset import find_dataset

    folder = Path(given)
    if not folder.is_dir() or any(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
        return given
    try:
        return str(find_dataset(folder).images)
    except DatasetError:
        return given


class TruthKind(StrEnum):
    """How true masks say their class."""

    COLOURS = "colours"
    IDS = "ids"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, or a dataset folder.", show_default=False)],
    truth_kind: Annotated[
        TruthKind, typer.Option("--truth", help="Whether true masks say their class by colour or by id.")
    ] = TruthKind.COLOURS,
    report: Annotated[
        Path | None, typer.Option(help="Write a report with intervals, plots and pictures to this folder.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Write the figures into this JSON file, for DVC.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older report.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Score predicted masks against true ones of the same stem."""
    from droneseg.core.files import check_writable
    from droneseg.evaluation.evaluate import evaluate_folder
    from droneseg.evaluation.report import REPORT_MARKER

    max_pixels = console.settings().max_pixels
    if report:
        check_writable(report, marker=REPORT_MARKER, replace=force)
    with console.progress("masks") as progress:
        found = evaluate_folder(
            predictions, _mask_folder(truth), truth_kind=truth_kind.value, max_pixels=max_pixels, progress=progress
        )
    if scores:
        from json import dumps

        from droneseg.core.files import write_text

        write_text(scores, dumps(vars(found.scores), indent=2) + "\n")
    if report:
        from droneseg.evaluation.report import write_report

        write_report(
            found, report, title=f"Quality of {predictions.name}", truth_kind=truth_kind.value, max_pixels=max_pixels,
            find_image=_photograph_finder(truth, max_pixels), replace=force,
        )  # fmt: skip
    if json:
        console.show_json(_as_json(found))
        return
    _show_evaluation(found)
    if report:
        console.out().print(f"report: {report / 'report.md'}", markup=False)


def _as_json(found: "Evaluation") -> dict[str, object]:
    return {
        "scores": vars(found.scores),
        "image_miou": {image.stem: image.miou for image in found.images},
        "without_prediction": found.without_prediction,
    }


def _show_evaluation(found: "Evaluation") -> None:
    from droneseg.evaluation.report import background_note

    scores = found.scores
    rows = [
        [name, console.figure(scores.per_class_iou[name]), console.figure(scores.per_class_dice[name])]
        for name in scores.per_class_iou
    ]
    console.out().print(console.table(f"{scores.images} images", ["class", "IoU", "Dice"], rows))
    console.out().print(
        f"mIoU {console.figure(scores.miou)}   image-wise mIoU {console.figure(scores.image_wise_miou)}"
    )
    console.out().print(
        f"unsafe landing rate {console.percent(scores.unsafe_landing_rate)}   "
        f"landing recall {console.percent(scores.landing_recall)}   "
        f"pixel accuracy {console.percent(scores.pixel_accuracy)}"
    )
    if note := background_note(scores.confusion):
        console.err().print(f"note: {note}")
    if found.without_prediction:
        console.err().print(f"note: {len(found.without_prediction)} true masks have no prediction and do not count")


def _photograph_finder(truth: Path, max_pixels: int) -> "Callable[[str], Image | None]":
    """Return what finds the photograph of a stem in a dataset folder; None for each elsewhere."""
    from droneseg.core.errors import DatasetError
    from droneseg.core.images import SUFFIXES, read_image
    from droneseg.data.dataset import find_dataset

    try:
        folder = find_dataset(truth).images
    except DatasetError:
        return lambda _stem: None

    def find(stem: str) -> "Image | None":
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return read_image(folder / f"{stem}{suffix}", max_pixels=max_pixels)
        return None

    return find


def _mask_folder(truth: Path) -> Path:
    """Return the folder of masks: `truth` itself if it holds PNGs, else the masks of the dataset there."""
    if not truth.is_dir() or any(truth.glob("*.png")):
        return truth
    from droneseg.data.dataset import find_dataset

    return find_dataset(truth).masks


def drift(
    number: Annotated[
        int, typer.Option("--n", min=20, max=20_000, help="How many of the last records, at most.")
    ] = 200,
    model: Annotated[Path | None, typer.Option(help="Bundle; default: $DRONESEG_MODEL.")] = None,
    records: Annotated[str | None, typer.Option(help="Folder or URL; default: $DRONESEG_RECORDS_URL.")] = None,
    reports: Annotated[str | None, typer.Option(help="Folder or URL; default: $DRONESEG_REPORTS_URL.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Write the verdict into this file, for Prometheus' textfile collector.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Hold the last records of predictions against the photographs the model was validated on.

    The report, a page and its figures, goes to --reports. Exit code 0, whether or not there is drift.
    """
    from droneseg.monitoring.drift_report import make_report

    settings = console.settings()
    with console.working("reading records and writing the report"):
        found = make_report(
            model or settings.model, records or settings.records_url, reports or settings.reports_url, number
        )
    if metrics:
        from droneseg.monitoring.prometheus import write_drift

        write_drift(metrics, drifted=found.drifted, share=found.share)
    if json:
        console.show_json(found.model_dump())
        return
    console.out().print(found.message, markup=False)
    console.out().print(f"report: {found.url}", markup=False)
