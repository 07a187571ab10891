"""`droneseg predict`: photographs to masks."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output
from droneseg.core.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    from droneseg.core.settings import Settings


class ProfileChoice(StrEnum):
    """Speed against fidelity."""

    EXACT = "exact"
    FAST = "fast"


def predict(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Photographs, folders or glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks, STEM.png each.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="Model folder; default: $DRONESEG_MODEL.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in each fold.")] = "checkpoint_final.pth",
    profile: Annotated[
        ProfileChoice, typer.Option(help="exact: nnU-Net's own answer, mirrored; fast: one pass.")
    ] = ProfileChoice.EXACT,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write STEM_overlay.png pictures too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Predict again what this model made before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Predict the masks of photographs.

    One bad file is reported and the others go on; exit code 1 at the end.
    """
    from droneseg.inference.folder import find_inputs, predict_files

    settings = environment.settings()
    sources = find_inputs(inputs)
    folder = _find_model(model, settings)
    try:
        from droneseg.nnunet.layout import Layout
        from droneseg.nnunet.reference import Profile, ReferenceSegmenter
    except ModuleNotFoundError as error:
        raise MissingDependencyError(str(error.name), "train") from error
    segmenter = ReferenceSegmenter(
        folder, Layout.from_settings(settings), checkpoint=checkpoint, profile=Profile(profile.value)
    )
    results = []
    with output.progress("photographs") as progress:
        for result in predict_files(
            segmenter, sources, out, overlay=overlay, force=force, max_pixels=settings.max_pixels
        ):
            results.append(result)
            progress(len(results), len(sources))
            if result.error:
                output.err().print(f"failed: {result.source}: {result.error}", markup=False)
    counts = Counter(result.status for result in results)
    if json:
        output.show_json({"model_id": segmenter.model_id, "results": [vars(result) for result in results]})
    else:
        summary = ", ".join(
            f"{counts[status]} {status}" for status in ("predicted", "skipped", "failed") if counts[status]
        )
        output.out().print(f"{out}: {summary} (model {segmenter.model_id}, {segmenter.profile})", markup=False)
    if counts["failed"]:
        raise typer.Exit(1)


def _find_model(model: Path | None, settings: "Settings") -> Path:
    """Return the model folder, or say which there are: nothing is chosen in silence."""
    folder = model or settings.model
    if folder.is_dir():
        return folder
    from droneseg.nnunet.layout import trained_folders

    found = "".join(f"\n  - {path}" for path in trained_folders(settings.nnunet_results))
    raise ModelError(
        f"No model at {folder}. "
        + (
            f"Pass one of these with --model:{found}"
            if found
            else "Train one with `droneseg train`, or name it with --model."
        )
    )
