"""Reader of the files that W&B writes offline."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore


@dataclass
class OfflineRun:
    """Contents of one session of a run."""

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[tuple[str, dict[str, Any], list[str]]] = field(default_factory=list)
    system: set[str] = field(default_factory=set)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Read all sessions in a folder, oldest first."""
    return [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _read(file: Path) -> OfflineRun:
    store, run, steps = DataStore(), OfflineRun(), defaultdict(dict)
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.group = record.run.run_group
            run.config |= {entry.key: json.loads(entry.value_json) for entry in record.run.config.update}
        elif kind == "history":
            for item in record.history.item:
                key = "/".join(item.nested_key) or item.key
                steps[record.history.step.num][key] = json.loads(item.value_json)
        elif kind == "artifact":
            artifact = record.artifact
            paths = [file.path for file in artifact.manifest.contents]
            run.artifacts.append((artifact.name, json.loads(artifact.metadata), paths))
        elif kind == "stats":
            run.system |= {item.key for item in record.stats.item}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    store.close()
    run.history = [steps[step] for step in sorted(steps)]
    return run
