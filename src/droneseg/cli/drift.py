"""`droneseg drift`: are today's photographs those the model was validated on?"""

from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output


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

    settings = environment.settings()
    with output.working("reading records and writing the report"):
        found = make_report(
            model or settings.model, records or settings.records_url, reports or settings.reports_url, number
        )
    if metrics:
        from droneseg.monitoring.prometheus import write_drift

        write_drift(metrics, drifted=found.drifted, share=found.share)
    if json:
        output.show_json(found.model_dump())
        return
    output.out().print(found.message, markup=False)
    output.out().print(f"report: {found.url}", markup=False)
