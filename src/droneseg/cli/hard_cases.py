"""`droneseg data hard-cases`: what to label next."""

from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output


def hard_cases(
    number: Annotated[int, typer.Option("--n", min=1, help="How many, at most.")] = 20,
    last: Annotated[int, typer.Option(min=1, help="Of how many of the last records.")] = 1000,
    records: Annotated[str | None, typer.Option(help="Folder or URL; default: $DRONESEG_RECORDS_URL.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Copy the photographs that were kept, and their masks, into this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace such a folder that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """List the photographs a model was least sure of, for labelling.

    Services keep a share of the photographs with DRONESEG_SAMPLE_SHARE; with --out only those are taken.
    """
    from droneseg.monitoring.log_reader import fetch_hard_cases, find_hard_cases, row_of

    place = records or environment.settings().records_url
    found = find_hard_cases(place, number, last=last, sampled=out is not None)
    if out:
        copied = fetch_hard_cases(place, found, out, replace=force)
        output.err().print(f"{out}: {copied} photographs and their masks", markup=False)
    if json:
        output.show_json([row_of(case) for case in found])
        return
    rows = [
        [
            output.figure(case.confidence),
            f"{case.time:%Y-%m-%d %H:%M}",
            case.model_id,
            (case.source or "no name")[:24],
            case.sample or "not kept",
        ]
        for case in found
    ]
    columns = ["confidence", "time (UTC)", "model", "source", "photograph"]
    output.out().print(output.table("least confident first", columns, rows))
