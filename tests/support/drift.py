"""Bundles with a drift reference, and prediction records that resemble it or differ."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from droneseg.core.camera import UNKNOWN_GROUND
from droneseg.core.images import Image
from droneseg.flows.export import take_reference
from droneseg.model.bundle import REFERENCE_NAME, Bundle, write_bundle
from droneseg.monitoring.drift import read_reference
from droneseg.monitoring.prediction_log import Record
from support.bundles import make_bundle

NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)


def photographs(count: int = 40, seed: int = 0) -> list[Image]:
    """Generate noise images with varying mean colour and brightness."""
    rng = np.random.default_rng(seed)
    grounds = rng.uniform(60, 200, (count, 1, 1, 3)) + rng.normal(0, 12, (count, 24, 32, 3))
    return list(np.clip(grounds, 0, 255).astype(np.uint8))


def make_bundle_with_reference(folder: Path, images: list[Image] | None = None) -> Bundle:
    """Write a bundle with a drift reference measured on these images."""
    plain = make_bundle(folder.parent / f"{folder.name}-plain")
    table = folder.parent / REFERENCE_NAME
    photos = [(image, UNKNOWN_GROUND) for image in images or photographs()]
    reference = take_reference(plain, photos, "40 photographs of noise", table)
    files = {name: plain.folder / name for name in plain.manifest.files} | {REFERENCE_NAME: table}
    return write_bundle(
        folder,
        lambda records: plain.manifest.model_copy(update={"files": records, "drift_reference": reference}),
        files,
    )


def records_like(
    bundle: Bundle,
    count: int,
    *,
    changed: Callable[[Record], Record] = lambda record: record,
    last: datetime = NOON,
    over: timedelta = timedelta(hours=3),
    seed: int = 0,
) -> list[Record]:
    """Return records drawn from a bundle's drift reference and passed through `changed`, oldest first."""
    table = read_reference(bundle).table
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.resize(np.arange(len(table["confidence"])), count))
    records = []
    for index, row in enumerate(rows):
        values = {name: column[row] for name, column in table.items()}
        records.append(
            changed(
                Record(
                    time=last - over * (1 - (index + 1) / count),
                    model_id=bundle.model_id,
                    width=32,
                    height=24,
                    class_fractions={"background": 0.0}
                    | {name.removeprefix("share_"): value for name, value in values.items() if "share_" in name[:6]},
                    confidence=values["confidence"],
                    statistics={
                        name: value
                        for name, value in values.items()
                        if not name.startswith(("share_", "confidence", "megapixels"))
                    },
                )
            )
        )
    return records


def darker(record: Record) -> Record:
    """Return the record with a third of its brightness."""
    return with_statistics(record, brightness=record.statistics["brightness"] / 3)


def with_statistics(record: Record, **values: float) -> Record:
    """Return the record with some statistics replaced."""
    return record.model_copy(update={"statistics": record.statistics | values})


def keep(folder: Path, records: list[Record], *, in_a_file: int = 1) -> list[Path]:
    """Write records to files named as the service names them."""
    files = []
    for begin in range(0, len(records), in_a_file):
        batch = records[begin : begin + in_a_file]
        first = batch[0].time
        name = f"{first:%Y/%m/%d/%H%M%S}.{first.microsecond // 1000:03d}-{uuid.uuid4().hex[:8]}.jsonl"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(record.model_dump_json() + "\n" for record in batch))
        files.append(folder / name)
    return files
