"""`droneseg preprocess` and `droneseg train`."""

from typing import Annotated

import typer

from droneseg.cli import environment, output


def preprocess(
    processes: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core, at most 8.")] = None,
) -> None:
    """Let nnU-Net plan and preprocess the converted dataset."""
    environment.require_nnunet()
    from droneseg.nnunet.paths import Layout
    from droneseg.nnunet.preprocess import preprocess as run

    layout = Layout.from_settings(environment.settings())
    done = run(layout, processes=processes, show_progress=output.err().is_terminal)
    height, width = done.patch_size
    output.out().print(f"{done.folder}: nnU-Net plans patches of {width}x{height}, batches of {done.batch_size}")


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="preset=smoke|cpu|pretrained|gpu, max_minutes=30, resume=true, ... See --show for all keys.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the resolved configuration and stop.")] = False,
) -> None:
    """Train one fold with nnU-Net's own loop.

    Ctrl-C and a crash cost the last epoch at most: the same command with resume=true goes on.
    """
    from droneseg.training.config import load_config

    config = load_config(overrides or [])
    if show:
        shown = config.model_dump(mode="json", exclude={"trainer"})
        output.show_json(shown | config.trainer.model_dump(mode="json", exclude={"bf16", "tracked"}))
        return
    environment.require_nnunet()
    from droneseg.nnunet.paths import Layout
    from droneseg.training.run import train as run

    settings = environment.settings()
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
    done = run(config, Layout.from_settings(settings), wandb_key=key)
    dice = f", mean validation Dice {done.mean_validation_dice:.3f}" if done.mean_validation_dice is not None else ""
    output.out().print(f"trained: {done.model_folder}{dice}")
    output.out().print(f"next: droneseg export --from {done.model_folder}")
