"""`droneseg models list|pull|push|promote|rollback`: where models are kept, and which one is the champion."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output
from droneseg.cli.parts import Part

if TYPE_CHECKING:
    from droneseg.core.settings import Settings
    from droneseg.model.registry import Entry

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

    found = run(environment.settings().model, remote)
    if json:
        from dataclasses import asdict

        output.show_json([asdict(each) for each in found])
        return
    rows = [
        [
            each.model_id or "not fetched",
            each.state + (", here" if each.here else ""),
            (each.since or "-")[:10],
            output.figure(each.figures.get("miou")),
            output.percent(each.figures.get("unsafe_landing_rate")),
            *([] if each.in_remote is None else ["yes" if each.in_remote else "no"]),
            each.why or "-",
        ]
        for each in found
    ]
    columns = ["model", "is", "since", "mIoU", "unsafe", *([f"in {remote}"] if remote else []), "why"]
    output.out().print(output.table("champions, the newest first", columns, rows))


def pull(
    remote: Remote = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that the registry does not know.")] = False,
) -> None:
    """Fetch the champion, and nothing else, as its `.dvc` file names it; works without git."""
    from droneseg.model.registry import is_known
    from droneseg.model.store import pull_model

    settings = _settled()
    with output.progress("MB") as progress:
        done = pull_model(
            settings.model,
            remote or settings.dvc_remote,
            replace=force or is_known(settings.model),
            progress=lambda now, total: progress(round(now / 1e6), round(total / 1e6)),
        )
    came = f"from {done.remote}" if done.fetched else "was there already"
    output.out().print(f"{done.bundle.folder}: model {done.bundle.model_id}, {came}", markup=False)


def push(remote: Remote = None) -> None:
    """Send the champion to a remote; what it holds already is not sent again."""
    from droneseg.model.store import push_model

    settings = _settled()
    place = push_model(settings.model, remote or settings.dvc_remote)
    output.out().print(f"{settings.model} is in {place}", markup=False)
    if str(Path.cwd()) in place:
        output.out().print("it lies in this repository: git add dvc-remote && git commit && git push", markup=False)


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
    from droneseg.flows.promote import Exam, promote_model

    if part and not split:
        raise typer.BadParameter("--part needs --split FILE", param_hint="--part")
    if force is not None and not force.strip():
        raise typer.BadParameter("give the reason, for those who will read the registry", param_hint="--force")
    with output.progress("photographs") as progress:
        entry = promote_model(
            candidate,
            Exam(data, split, (part or Part.VAL).value, report),
            settings=environment.settings(),
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

    _show(roll_back(environment.settings(), reason), json=json)


def _settled() -> "Settings":
    """Return the settings, once a promotion that was killed is undone."""
    from droneseg.flows.transaction import undo_unfinished

    settings = environment.settings()
    undo_unfinished(settings.model)
    return settings


def _show(entry: "Entry", *, json: bool) -> None:
    if json:
        output.show_json(entry.model_dump(mode="json"))
        return
    before = f" instead of {entry.previous.model_id}" if entry.previous else ""
    output.out().print(f"champion: model {entry.model.model_id}{before}: {entry.reason}", markup=False)
    output.out().print("next: droneseg models push, git push, and POST /admin/reload to what serves it", markup=False)
