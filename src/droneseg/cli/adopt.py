"""`droneseg data adopt`: a dataset of one's own folders and colours."""

from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output


def adopt(
    images: Annotated[Path, typer.Argument(help="Folder of photographs.", show_default=False)],
    masks: Annotated[Path, typer.Argument(help="Folder of masks of the same stems.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    colours: Annotated[
        Path,
        typer.Option(help="CSV with the columns r, g, b and class. If it is not there, it is written to be filled in."),
    ] = Path("colours.csv"),
    mask_suffix: Annotated[str, typer.Option(help="What masks have at the end of their stem, such as _mask.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that was made so before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Make a dataset of your own folders and colours: photographs as they are, masks in the five classes' colours.

    The first time it writes a table of the colours that occur and, unless all are the classes' own, exits with 1: say
    the class of each, and run again.
    """
    from droneseg.core.errors import ConfigurationError
    from droneseg.data.importer import adopt as make
    from droneseg.data.importer import pair_up, read_colours, write_colours

    max_pixels = environment.settings().max_pixels
    pairs = pair_up(images, masks, mask_suffix)
    if not colours.exists():
        with output.progress("masks") as progress:
            number, strange = write_colours(colours, pairs, max_pixels=max_pixels, progress=progress)
        if strange:
            raise ConfigurationError(
                f"{colours} was not there to say which colour is which class, and was written, with the {number} "
                "colours of the masks. Fill in its column class, and run this again."
            )
    table = read_colours(colours)
    with output.progress("pairs") as progress:
        done = make(pairs, table, out, replace=force, max_pixels=max_pixels, progress=progress)
    if json:
        output.show_json(done)
        return
    total = sum(done.pixels.values())
    rows = [[name, output.percent(pixels / total)] for name, pixels in done.pixels.items()]
    output.out().print(output.table(f"{done.folder}: {done.pairs} pairs", ["class", "share of pixels"], rows))
    output.out().print(f"next: droneseg data check {out}", markup=False)
