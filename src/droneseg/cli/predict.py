"""`droneseg predict`: photographs to masks."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output
from droneseg.cli.parts import Part
from droneseg.core.settings import RuntimeName


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
    settings = environment.settings()
    sources = find_inputs([_photographs(given) for given in inputs])
    if split:
        from droneseg.data.splits import read_split

        chosen = set(getattr(read_split(split, [source.stem for source in sources]), (part or Part.TEST).value))
        sources = [source for source in sources if source.stem in chosen]
    require_output(sources, out, overlay=overlay, force=force)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
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
        how = f"model {segmenter.model_id}, {segmenter.profile}, {segmenter.runtime}"
        output.out().print(f"{out}: {summary} ({how})", markup=False)
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
