"""The `droneseg models` commands."""

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from droneseg.cli import console
from droneseg.cli.console import Part

if TYPE_CHECKING:
    from droneseg.core.settings import Settings
    from droneseg.evaluation.comparison import ComparisonReport
    from droneseg.model.registry import ModelVersion, RegistryEntry

Remote = Annotated[
    str | None, typer.Option("--remote", help="DVC's remote; default: $DRONESEG_DVC_REMOTE or the one in .dvc.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def list_models(
    remote: Annotated[str | None, typer.Option("--remote", help="Ask this remote which of them it holds.")] = None,
    json: Json = False,
) -> None:
    """List the champion and the models before it."""
    from droneseg.model.registry import list_models as run

    found = run(console.settings().model, remote)
    if json:
        console.show_json([_as_json(version) for version in found])
        return
    rows = [
        [
            each.model_id or "not fetched",
            each.state + (", here" if each.is_local else ""),
            (each.since or "-")[:10],
            console.figure(each.figures.get("miou")),
            console.percent(each.figures.get("unsafe_landing_rate")),
            *([] if each.in_remote is None else ["yes" if each.in_remote else "no"]),
            each.why or "-",
        ]
        for each in found
    ]
    columns = ["model", "is", "since", "mIoU", "unsafe", *([f"in {remote}"] if remote else []), "why"]
    console.out().print(console.table("champions, the newest first", columns, rows))


def pull(
    remote: Remote = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that the registry does not know.")] = False,
) -> None:
    """Fetch the champion, and nothing else, as its `.dvc` file names it; works without git."""
    from droneseg.model.registry import is_known
    from droneseg.model.store import pull_model

    settings = _settled()
    with console.progress("MB") as progress:
        done = pull_model(
            settings.model,
            remote or settings.dvc_remote,
            replace=force or is_known(settings.model),
            progress=lambda now, total: progress(round(now / 1e6), round(total / 1e6)),
        )
    came = f"from {done.remote}" if done.fetched else "was there already"
    console.out().print(f"{done.bundle.folder}: model {done.bundle.model_id}, {came}", markup=False)


def push(remote: Remote = None) -> None:
    """Send the champion to a remote; what it holds already is not sent again."""
    from droneseg.model.store import push_model

    settings = _settled()
    place = push_model(settings.model, remote or settings.dvc_remote)
    console.out().print(f"{settings.model} is in {place}", markup=False)
    if str(Path.cwd()) in place:
        console.out().print("it lies in this repository: git add dvc-remote && git commit && git push", markup=False)


def promote(
    candidate: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the candidate.")],
    data: Annotated[Path, typer.Option(help="Dataset folder, held out.", show_default=False)],
    split: Annotated[Path | None, typer.Option(help="Take only a part of this split file.")] = None,
    part: Annotated[Part | None, typer.Option(help="Which part of the split; default: val.")] = None,
    force: Annotated[
        str | None, typer.Option("--force", metavar="REASON", help="Promote it whatever the figures say.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("comparison"),
    json: Json = False,
) -> None:
    """Make a model the champion if it is better with 95 % confidence and not less safe.

    Both are compared on the same photographs. The registry, model-registry.jsonl, and the `.dvc` file are committed.
    """
    from droneseg.flows.promote import EvaluationSpec, promote_model

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    if force is not None and not force.strip():
        raise typer.BadParameter("give the reason, for those who will read the registry", param_hint="--force")
    with console.progress("photographs") as progress:
        entry = promote_model(
            candidate,
            EvaluationSpec(data, split, (part or Part.VAL).value, report),
            settings=console.settings(),
            force=force,
            progress=lambda _name, done, total: progress(done, total),
        )
    _show(entry, json=json)


def rollback(
    reason: Annotated[str, typer.Option("--reason", help="For those who will read the registry.")] = "not given",
    json: Json = False,
) -> None:
    """Give the model before the champion its place back; again goes one further back."""
    from droneseg.flows.promote import roll_back

    _show(roll_back(console.settings(), reason), json=json)


def _settled() -> "Settings":
    """Return the settings, once a promotion that was killed is undone."""
    from droneseg.flows.transaction import recover_unfinished

    settings = console.settings()
    recover_unfinished(settings.model)
    return settings


def _as_json(version: "ModelVersion") -> dict[str, Any]:
    entry = asdict(version)
    entry["here"] = entry.pop("is_local")  # the key that scripts know
    return entry


def _show(entry: "RegistryEntry", *, json: bool) -> None:
    if json:
        console.show_json(entry.model_dump(mode="json"))
        return
    before = f" instead of {entry.previous.model_id}" if entry.previous else ""
    console.out().print(f"champion: model {entry.model.model_id}{before}: {entry.reason}", markup=False)
    console.out().print("next: droneseg models push, git push, and POST /admin/reload to what serves it", markup=False)


app = typer.Typer(help="Fetch, send, compare, promote and blend models.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Fetch, send, compare, promote and blend models."""
    # like Ctrl-C: what is half done is taken back before the end
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


app.command("list")(list_models)
app.command()(pull)
app.command()(push)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the model that is there.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Bundle of the one that may replace it.")],
    data: Annotated[Path, typer.Option(help="Dataset folder.", show_default=False)],
    split: Annotated[Path | None, typer.Option(help="Take only a part of this split file.")] = None,
    part: Annotated[Part | None, typer.Option(help="Which part of the split; default: val.")] = None,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("comparison"),
    force: Annotated[bool, typer.Option("--force", help="Replace an older report.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Compare two models on the same photographs, with intervals of the differences."""
    from droneseg.core.files import check_writable
    from droneseg.evaluation.report import REPORT_MARKER
    from droneseg.flows.promote import compare_models

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    check_writable(report, marker=REPORT_MARKER, replace=force)
    with console.progress("photographs") as progress:
        comparison = compare_models(
            first,
            second,
            data,
            report,
            settings=console.settings(),
            split_file=split,
            part=(part or Part.VAL).value,
            replace=force,
            progress=lambda _name, count, total: progress(count, total),
        )
    if json:
        console.show_json(comparison.model_dump(mode="json"))
        return
    console.out().print(_table(comparison))
    console.out().print(f"report: {report / 'report.md'}", markup=False)


app.command()(promote)
app.command()(rollback)


@app.command()
def reference(
    model: Annotated[Path, typer.Argument(metavar="A", help="Bundle.")],
    data: Annotated[Path, typer.Option(help="Dataset folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Bundle to write.", show_default=False)],
    split: Annotated[Path | None, typer.Option(help="Take only a part of this split file.")] = None,
    part: Annotated[Part | None, typer.Option(help="Which part of the split; default: val.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Write a copy of a model with a reference for drift, from photographs it was not trained on.

    `droneseg export` does it by itself; this is for other photographs, when the world has changed for good.
    """
    from droneseg.flows.export import add_reference

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    settings = console.settings()
    with console.progress("photographs") as progress:
        bundle = add_reference(
            model, data, out, split_file=split, part=(part or Part.VAL).value, max_pixels=settings.max_pixels,
            replace=force, progress=progress,
        )  # fmt: skip
    stated = bundle.manifest.drift_reference
    on = f", {stated.images} photographs ({stated.data})" if stated else ""
    console.out().print(f"{bundle.folder}: model {bundle.model_id}{on}", markup=False)


@app.command()
def blend(
    first: Annotated[Path, typer.Argument(metavar="A", help="Model folder of nnU-Net.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same, trained further on other data.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.", show_default=False)],
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of B in the weights.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace an older blend; a training never is.")] = False,
) -> None:
    """Make a model whose weights lie between those of A and of what B became of it.

    A model trained further on new flights forgets some of the old; one in between often keeps both.
    """
    console.require_nnunet()
    from droneseg.nnunet.checkpoint import interpolate_weights

    interpolate_weights(first, second, out, share=share, replace=force)
    console.out().print(f"blended: {out}\nnext: droneseg export --from {out}", markup=False)


def _table(report: "ComparisonReport") -> Any:
    from droneseg.evaluation.report import figure_title, interval_text, number, significance_label

    rows = [
        [
            figure_title(name),
            *(number(figures[name].value) for figures in report.figures),
            number(difference.value, signed=True),
            interval_text(difference),
            significance_label(difference),
        ]
        for name, difference in report.differences.items()
        if not name.startswith("dice/")
    ]
    title = "\n".join([*report.about, f"{report.images} images"])
    return console.table(title, ["metric", "A", "B", "B - A", "95 % interval", ""], rows)
