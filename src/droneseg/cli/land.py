"""The `droneseg land` command."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Model
from droneseg.core.classes import Role
from droneseg.core.errors import LandingRoleError, optional_import
from droneseg.core.runtimes import RuntimeName

if TYPE_CHECKING:
    from droneseg.core.classes import ClassTable
    from droneseg.flows.landing_files import LandResult
    from droneseg.inference.batch import ViewOptions
    from droneseg.inference.landing import LandingOptions, LandingSite

NO_SITE_EXIT = 3


def land(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Photographs, folders or glob patterns.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for NAME_landing.json and, with --overlay, NAME_landing.png.")
    ] = None,
    model: Model = None,
    profile: Annotated[str | None, typer.Option(help="Profile; default: $DRONESEG_PROFILE or the bundle's.")] = None,
    runtime: Annotated[RuntimeName | None, typer.Option(help="Inference runtime; default: $DRONESEG_RUNTIME.")] = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    radius: console.Radius = None,
    radius_px: console.RadiusPx = None,
    clearance: console.Clearance = None,
    clearance_px: console.ClearancePx = None,
    clearance_people: console.ClearancePeople = None,
    clearance_people_px: console.ClearancePeoplePx = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Also allow this class, or soft for all classes with the role soft; repeatable. "
            "Default: only classes with the role landing.",
        ),
    ] = None,
    max_sites: Annotated[int, typer.Option(min=1, max=20, help="Maximum number of sites per photograph.")] = 5,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw the sites over the photograph; needs --out.")
    ] = False,
    mavlink: Annotated[
        bool,
        typer.Option(
            "--mavlink", help="Write the fields of the MAVLink message LANDING_TARGET for the best site as JSON."
        ),
    ] = False,
    fail_if_none: Annotated[
        bool, typer.Option("--fail-if-none", help="Exit with code 3 if no photograph has a site.")
    ] = False,
    json: Json = False,
) -> None:
    """Find sites where a drone can land.

    A site is a disc of landing zone. It keeps one clearance from everything unsafe and another one from people and
    vehicles. If the scale of a photograph is known, the default radius is 1.5 m, and the default clearances are 1 m and
    5 m; otherwise, they depend on its size in pixels. The result is advisory: slope, wires, wind and later movements
    cannot be seen in a photograph.
    """
    from droneseg.flows.landing_files import land_files, mavlink_fields, require_landing_output
    from droneseg.inference.segmenter import load_segmenter

    if overlay and not out:
        raise typer.BadParameter("requires --out DIR", param_hint="--overlay")
    if mavlink and json:
        raise typer.BadParameter("cannot be combined with --json; both write to stdout", param_hint="--mavlink")
    view = console.view_options(gsd, height, plain=False)
    settings = console.settings()
    images = console.find_images(inputs, model)
    if out:
        require_landing_output(images, out, overlay=overlay)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
    landing = (Role.LANDING,) if segmenter.classes.has(Role.LANDING) else ()
    options = console.landing_options(
        radius_m=radius,
        radius_px=radius_px,
        clearance_m=clearance,
        clearance_px=clearance_px,
        clearance_people_m=clearance_people,
        clearance_people_px=clearance_people_px,
        max_sites=max_sites,
        allow=(*landing, *(allow or ())),
    )
    moving = [segmenter.classes[i].name for i in segmenter.classes.ids_of(Role.MOVING)]
    _check_allowed(options, segmenter.classes, named=bool(allow))  # before the first prediction
    results = []
    with console.progress_bar("photographs") as progress:
        for result in land_files(
            segmenter, images, options, out, view=view, overlay=overlay, max_pixels=settings.max_pixels
        ):
            results.append(result)
            progress(len(results), len(images))
            if result.error:
                console.err().print(f"failed: {result.source}: {result.error}", markup=False)
    if mavlink:
        console.show_json(
            [{"source": result.source, **mavlink_fields(result, view)} for result in results if result.answer]
        )
    elif json:
        console.show_json({"results": [result.model_dump(mode="json", by_alias=True) for result in results]})
    else:
        _show(results, moving, out, overlay=overlay)
    if any(result.error for result in results):
        raise typer.Exit(1)
    if fail_if_none and not any(result.answer and result.answer.sites for result in results):
        raise typer.Exit(NO_SITE_EXIT)


def _check_allowed(options: LandingOptions, classes: ClassTable, *, named: bool) -> None:
    """Check that the model has the classes to land on.

    Raises:
        LandingRoleError: If the model has no class to land on, or none without --allow.
        typer.BadParameter: If --allow names another class.
    """
    from droneseg.inference.landing import allowed_roles

    try:
        allowed_roles(options.allow, classes)
    except LandingRoleError as error:
        if named and classes.ids_of(Role.LANDING, Role.SOFT):
            raise typer.BadParameter(str(error), param_hint="--allow") from error
        raise


def _show(results: list[LandResult], moving: list[str], out: Path | None, *, overlay: bool) -> None:
    """Write a table of the sites, the reason for each photograph without one, and where the files are."""
    answers = [(Path(result.source).name, result.answer) for result in results if result.answer]
    rows = [
        [name if site.rank == 1 else "", *_cells(site, moving)] for name, answer in answers for site in answer.sites
    ]
    found = sum(bool(answer.sites) for _, answer in answers)
    columns = ["photograph", "rank", "x, y", "radius", "to people", "P", "score"]
    summary = f"{found} of {len(results)} photographs have a site"
    console.out().print(console.table(summary, columns, rows) if rows else summary)
    for name, answer in answers:
        if not answer.sites:
            console.out().print(f"{name}: no site ({answer.reason}). {answer.message}", markup=False)
    unbounded = sum(bool(answer.sites) and answer.policy.bound is None for _, answer in answers)
    if unbounded:
        console.err().print(
            f"note: the share of unsafe sites is not known for {unbounded} of {found} photographs, because the limits "
            "of the model are not calibrated for these lengths and classes"
        )
    if out and answers:
        from droneseg.flows.landing_files import ANSWER_SUFFIX, DRAWING_SUFFIX

        console.out().print(f"written: {out / f'*{DRAWING_SUFFIX if overlay else ANSWER_SUFFIX}'}", markup=False)


def _cells(site: LandingSite, moving: list[str]) -> list[str]:
    """Return rank, centre, radius, distance to people, smallest probability and score of a site."""
    in_pixels = site.radius_m is None
    clearances = site.clearance_px if in_pixels else site.clearance_m
    people = min((value for name in moving if (value := clearances[name]) is not None), default=None)
    unit = "px" if in_pixels else "m"
    return [
        str(site.rank),
        f"{site.x_px:.0f}, {site.y_px:.0f}",
        f"{site.radius_px if site.radius_m is None else site.radius_m:.1f} {unit}",
        "-" if people is None else f"{people:.1f} {unit}",
        console.percent(site.min_probability),
        f"{site.score:.2f}",
    ]


@dataclass(frozen=True)
class LandingSource:
    """Photographs whose landing sites are evaluated.

    Attributes:
        data: Dataset, or folder of probability maps.
        model: Bundle; None for the bundle in the settings.
        split: Split file; None for all photographs.
        part: Part of the split.
        view: How the photographs are presented to the model.
        boxes: File of boxes around people.
        by_place: Whether to match the photographs to group them by place.
    """

    data: Path
    model: Path | None
    split: Path | None
    part: str
    view: ViewOptions
    boxes: Path | None
    by_place: bool


def evaluate_landing(
    source: LandingSource, options: LandingOptions, report: Path | None, *, force: bool, json: bool
) -> None:
    """Evaluate the landing sites of photographs, for `droneseg evaluate --landing`."""
    from droneseg.core.boxes import read_boxes
    from droneseg.core.files import check_writable
    from droneseg.flows.landing_quality import REPORT_NAME, as_json, evaluate_sites, write_report

    if report:
        check_writable(report, marker=REPORT_NAME, replace=force)
        with optional_import("matplotlib", "train"):  # before the photographs are predicted
            importlib.import_module("matplotlib")
    boxes = read_boxes(source.boxes) if source.boxes else {}
    settings = console.settings()
    with console.progress_bar("photographs") as progress:
        evaluation = evaluate_sites(
            source.data,
            source.split,
            source.part,
            options,
            model=source.model or settings.model,
            settings=settings,
            view=source.view,
            boxes=boxes,
            by_place=source.by_place,
            progress=progress,
        )
    if report:
        write_report(evaluation, report)
    if json:
        console.show_json(as_json(evaluation))
        return
    risk, limit = evaluation.risk, evaluation.policy.danger_limit
    rows = [
        ["photographs with a site", f"{risk.with_site} of {risk.photographs}"],
        ["first sites that contain anything unsafe", console.failures(risk.unsafe)],
        ["first sites more than 1 % unsafe", console.failures(risk.much_unsafe)],
        ["first sites with a person inside", console.failures(risk.people_inside)],
        ["first sites with a person within the clearance", console.failures(risk.people_near)],
        ["places whose first sites contain anything unsafe", console.failures(risk.unsafe_places)],
        ["no site, but room for one", f"{risk.false_abstentions.failures} of {risk.false_abstentions.number}"],
        *([f"no site: {reason}", str(number)] for reason, number in sorted(risk.reasons.items())),
        *([["first sites with too few labels, not counted", str(risk.unlabelled)]] if risk.unlabelled else []),
    ]
    console.out().print(console.table(f"danger below {limit:g}", ["landing sites", "number (95 % bound)"], rows))
    if report:
        console.out().print(f"report: {report}", markup=False)
