"""Weights & Biases through nnU-Net's own logger, which is switched by environment variables."""

import os
from netrc import NetrcParseError, netrc
from typing import Literal

_ENABLED = "nnUNet_wandb_enabled"


def enable_wandb(project: str, mode: Literal["auto", "online", "offline"], *, api_key: str | None) -> str:
    """Switch nnU-Net's W&B logger on; "auto" is online with a key and offline without.

    Returns:
        The mode chosen.
    """
    chosen = mode if mode != "auto" else ("online" if api_key or _logged_in() else "offline")
    os.environ.update({_ENABLED: "1", "nnUNet_wandb_project": project, "nnUNet_wandb_mode": chosen})
    return chosen


def disable_wandb() -> None:
    """Switch nnU-Net's W&B logger off, whatever the environment said."""
    os.environ[_ENABLED] = "0"


def _logged_in() -> bool:
    """Say whether `wandb login` left a key."""
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False
