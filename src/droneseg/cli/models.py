"""`droneseg models ...`: fetch and send models, hold them against each other, promote one, blend two."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from droneseg.cli import environment, output, store
from droneseg.cli.parts import Part

app = typer.Typer(help="Fetch, send, compare, promote and blend models.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Fetch, send, compare, promote and blend models."""
    # like Ctrl-C: what is half done is taken back before the end
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


app.command("list")(store.list_models)
app.command()(store.pull)
app.command()(store.push)


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
    from droneseg.core.files import require_free
    from droneseg.evaluation.report import REPORT_MARKER
    from droneseg.flows.promote import compare_models

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    require_free(report, marker=REPORT_MARKER, replace=force)
    with output.progress("photographs") as progress:
        done = compare_models(
            first,
            second,
            data,
            report,
            settings=environment.settings(),
            split_file=split,
            part=(part or Part.VAL).value,
            replace=force,
            progress=lambda _name, count, total: progress(count, total),
        )
    if json:
        output.show_json(done.found)
        return
    output.out().print(_table(done.found))
    output.out().print(f"report: {done.report / 'report.md'}", markup=False)


app.command()(store.promote)
app.command()(store.rollback)


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
    settings = environment.settings()
    with output.progress("photographs") as progress:
        bundle = add_reference(
            model, data, out, split_file=split, part=(part or Part.VAL).value, max_pixels=settings.max_pixels,
            replace=force, progress=progress,
        )  # fmt: skip
    stated = bundle.manifest.drift_reference
    on = f", {stated.images} photographs ({stated.data})" if stated else ""
    output.out().print(f"{bundle.folder}: model {bundle.model_id}{on}", markup=False)


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
    environment.require_nnunet()
    from droneseg.nnunet.checkpoint import blend_models

    blend_models(first, second, out, share=share, replace=force)
    output.out().print(f"blended: {out}\nnext: droneseg export --from {out}", markup=False)


def _table(found: dict[str, Any]) -> Any:
    from droneseg.evaluation.bootstrap import Interval
    from droneseg.evaluation.report import figure_title, interval_text, number, verdict

    rows = []
    for name, values in found["differences"].items():
        if name.startswith("dice/"):
            continue
        difference = Interval(**values)
        rows.append(
            [
                figure_title(name),
                *(number(figures[name]["value"]) for figures in found["figures"]),
                number(difference.value, signed=True),
                interval_text(difference),
                verdict(difference),
            ]
        )
    title = "\n".join([*found["about"], f"{found['images']} photographs"])
    return output.table(title, ["figure", "A", "B", "B - A", "95 % interval", ""], rows)
