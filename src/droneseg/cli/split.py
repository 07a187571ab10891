"""`droneseg data split`: which photographs train, validate and test."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output

if TYPE_CHECKING:
    from droneseg.data.scene_split import SceneSplit
    from droneseg.data.splits import Split


class SplitBy(StrEnum):
    """How a split is made."""

    SCENE = "scene"
    RANDOM = "random"


def split(
    source: Annotated[Path, typer.Argument(help="Dataset folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Split file to write.", show_default=False)],
    by: Annotated[
        SplitBy, typer.Option(help="scene: no place in two parts, found from the pictures; random: by chance.")
    ] = SplitBy.SCENE,
    val_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share for validation.")] = 0.15,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share for the test.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal splits.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an older split file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Deal the photographs to train, validation and test."""
    from droneseg.data.splits import require_split_place, write_split

    require_split_place(out, replace=force)
    if by is SplitBy.RANDOM:
        made = _random_split(source, val_share, test_share, seed)
        write_split(made, out, replace=force)
        described = {"train": len(made.train), "val": len(made.val), "test": len(made.test), "by": by.value}
        if json:
            output.show_json(described)
            return
        output.out().print(f"{out}: {len(made.train)} train, {len(made.val)} val, {len(made.test)} test ({by.value})")
        output.err().print("note: one place can be in several parts of a random split if photographs share it")
        return
    found = _scene_split(source, val_share, test_share, seed)
    write_split(found.split, out, replace=force)
    sizes = {name: len(getattr(found.split, name)) for name in ("train", "val", "test", "dropped")}
    if json:
        output.show_json(
            sizes | {"by": by.value, "crossing": found.crossing, "groups": found.groups, "shares": found.class_shares}
        )
        return
    parts = list(found.class_shares)
    rows = [
        ["photographs", *(str(sizes[part]) for part in parts)],
        ["places", *(str(found.groups[part]) for part in parts)],
        *(
            [name, *(output.percent(found.class_shares[part][name]) for part in parts)]
            for name in found.class_shares[parts[0]]
        ),
    ]
    output.out().print(output.table(str(out), ["", *parts], rows))
    output.out().print(f"{found.crossing} matches cross from one part to another; {sizes['dropped']} dropped")


def _random_split(source: Path, val_share: float, test_share: float, seed: int) -> "Split":
    from droneseg.core.errors import DatasetError
    from droneseg.data.dataset import list_pairs
    from droneseg.data.splits import random_split

    listing = list_pairs(source)
    if listing.problems:
        raise DatasetError(
            f"{listing.root} has {len(listing.problems)} problem(s) in its file names; see also `droneseg data check`:",
            listing.problems,
        )
    return random_split([pair.stem for pair in listing.pairs], val_share=val_share, test_share=test_share, seed=seed)


def _scene_split(source: Path, val_share: float, test_share: float, seed: int) -> "SceneSplit":
    from droneseg.core.errors import DatasetError
    from droneseg.data.dataset import inspect_dataset, list_pairs
    from droneseg.data.image_matching import find_matches
    from droneseg.data.scene_split import split_by_scene

    settings = environment.settings()
    with output.progress("pairs") as progress:
        inspection = inspect_dataset(source, max_pixels=settings.max_pixels, progress=progress)
    if inspection.problems:
        raise DatasetError(f"{inspection.root} has {len(inspection.problems)} problem(s):", inspection.problems)
    with output.progress_of("features", "matches") as progress:
        matches = find_matches(
            {pair.stem: pair.image for pair in list_pairs(source).pairs},
            cache=settings.cache_dir.expanduser() / "scenes",
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    return split_by_scene(
        matches,
        {facts.stem: facts.class_pixels for facts in inspection.facts},
        val_share=val_share,
        test_share=test_share,
        seed=seed,
    )
