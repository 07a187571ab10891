"""The prediction log writes in the background; its storage may fail without failing the service."""

import json
import math
import re
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.prediction import Prediction, class_fractions
from droneseg.monitoring import prediction_log
from droneseg.monitoring.prediction_log import PredictionLog
from support.buckets import bucket
from support.waiting import HANG_S, wait_until


class Counts(Counter[str]):
    """Adds up the outcomes that a log counts."""

    def __call__(self, outcome: str, number: int) -> None:
        self[outcome] += number


def log_widths(log: PredictionLog, *widths: int) -> None:
    """Log one image of each width."""
    for width in widths:
        mask = np.full((1, width), 5, np.uint8)
        prediction = Prediction(mask, DEFAULT_CLASSES, class_fractions(mask, DEFAULT_CLASSES), 0.5, {}, "abc")
        log.log(None, prediction)


def lines(folder: Path) -> list[dict[str, object]]:
    files = sorted(folder.rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def widths(folder: Path) -> list[object]:
    return [line["width"] for line in lines(folder)]


def test_records_are_written_soon_in_one_file_named_by_time(tmp_path: Path) -> None:
    counts = Counts()
    log = PredictionLog(str(tmp_path), count_records=counts)
    log_widths(log, 1, 2, 3, 4, 5)
    wait_until(lambda: counts["written"] == 5)
    assert widths(tmp_path) == [1, 2, 3, 4, 5]
    (file,) = tmp_path.rglob("*.jsonl")
    name = str(file.relative_to(tmp_path))
    moment = datetime.fromisoformat(str(lines(tmp_path)[0]["time"]))
    assert name.startswith(f"{moment:%Y/%m/%d/%H%M%S}.{moment.microsecond // 1000:03d}-")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\d{6}\.\d{3}-[0-9a-f]{8}\.jsonl", name)
    log.close(HANG_S)


def test_flush_returns_once_everything_is_written(tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path), count_records=Counts())
    log_widths(log, 1, 2, 3)
    log.flush(HANG_S)
    assert widths(tmp_path) == [1, 2, 3]
    log.flush(HANG_S)  # with nothing to write
    log.close(HANG_S)


def test_flush_returns_in_time_if_the_storage_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = PredictionLog(str(tmp_path / "file"), count_records=Counts())
    log_widths(log, 1)
    begin = time.monotonic()
    log.flush(0.2)
    assert 0.2 <= time.monotonic() - begin < HANG_S
    log.close(0)


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    counts = Counts()
    log = PredictionLog(str(tmp_path), count_records=counts)
    log_widths(log, 1)
    log.close(HANG_S)
    assert widths(tmp_path) == [1]
    assert counts == {"written": 1}


def test_records_wait_for_the_storage_and_the_oldest_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    (tmp_path / "store").write_text("a file where a folder should be")
    log = PredictionLog(str(tmp_path / "store"), count_records=counts, max_records=3)
    log_widths(log, *range(1, 11))
    wait_until(lambda: "cannot write records" in caplog.text)
    assert counts["written"] == 0
    (tmp_path / "store").unlink()
    log.close(HANG_S)
    assert widths(tmp_path / "store") == [8, 9, 10]
    assert counts == {"dropped": 7, "written": 3}


def test_close_drops_and_counts_records_without_a_storage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    (tmp_path / "store").write_text("in the way")
    log = PredictionLog(str(tmp_path / "store"), count_records=counts)
    log_widths(log, 1)
    log.close(HANG_S)
    assert counts == {"dropped": 1}
    assert "dropped 1 records: cannot write to" in caplog.text


def test_a_write_that_hangs_delays_neither_logging_nor_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, writing, release = Counts(), threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        writing.set()
        release.wait(HANG_S)

    monkeypatch.setattr(prediction_log, "write_file", hang)
    log = PredictionLog(str(tmp_path), count_records=counts)
    log_widths(log, 1)
    assert writing.wait(HANG_S)
    log_widths(log, 2, 3)
    log.close(0.1)
    assert counts == {"dropped": 3}
    release.set()  # the outcome of that write was counted already
    log._worker.join(HANG_S)
    assert counts == {"dropped": 3}


def test_records_are_written_to_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    with bucket("kept", monkeypatch) as kept:
        log = PredictionLog(f"{kept.url}/champion", count_records=counts)
        log_widths(log, 1, 2, 3)
        log.close(HANG_S)
        assert counts == {"written": 3}
        store = fsspec.filesystem("gs", skip_instance_cache=True)
        (name,) = store.find("kept")
        assert re.fullmatch(r"kept/champion/\d{4}/\d\d/\d\d/\d{6}\.\d{3}-[0-9a-f]{8}\.jsonl", name)
        assert [json.loads(line)["width"] for line in store.cat(name).splitlines()] == [1, 2, 3]


def test_records_that_wait_for_a_slow_write_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, writing, release = Counts(), threading.Event(), threading.Event()
    real = prediction_log.write_file

    def write(*arguments: object) -> None:
        writing.set()
        release.wait(HANG_S)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_log, "write_file", write)
    monkeypatch.setattr(prediction_log, "_MAX_RECORDS", 3)
    log = PredictionLog(str(tmp_path), count_records=counts)
    log_widths(log, 1)
    assert writing.wait(HANG_S)
    log_widths(log, 2, 3, 4, 5, 6)
    assert counts == {"dropped": 2}
    release.set()
    log.close(HANG_S)
    log_widths(log, 7)
    assert counts == {"dropped": 3, "written": 4}
    assert sorted(map(int, map(str, widths(tmp_path)))) == [1, 2, 3, 4]


def test_a_record_that_cannot_be_made_is_counted(tmp_path: Path) -> None:
    counts, mask = Counts(), np.full((1, 1), 5, np.uint8)
    log = PredictionLog(str(tmp_path), count_records=counts)
    log.log(None, Prediction(mask, DEFAULT_CLASSES, class_fractions(mask, DEFAULT_CLASSES), math.nan, {}, "abc"))
    log_widths(log, 2)
    log.close(HANG_S)
    assert widths(tmp_path) == [2]
    assert counts == {"dropped": 1, "written": 1}


def test_a_record_holds_a_hash_of_the_name_and_no_image(tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path), count_records=Counts())
    mask = np.full((8, 10), 5, np.uint8)
    statistics = {"brightness": 0.5}
    ground = Ground(gsd_m=0.0125, source="argument", scale=0.5, warnings=(WarningCode.OBLIQUE,))
    log.log(
        "my garden.png",
        Prediction(
            mask,
            DEFAULT_CLASSES,
            class_fractions(mask, DEFAULT_CLASSES),
            0.75,
            {},
            "abc",
            ground,
            statistics,
            seen_size=(4, 5),
        ),
    )
    log.close(HANG_S)
    (record,) = lines(tmp_path)
    assert "garden" not in json.dumps(record)
    assert len(str(record["source"])) == 64
    assert (record["width"], record["height"], record["confidence"]) == (10, 8, 0.75)
    assert (record["seen_width"], record["seen_height"]) == (5, 4)
    assert record["class_fractions"]["landing-zones"] == 1  # type: ignore[index]
    assert record["statistics"] == statistics
    assert Ground.model_validate(record["ground"]) == ground
