"""Records are written in the background, many to a file, and the store's troubles are not the service's."""

import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest

from droneseg.core.prediction import Prediction, class_fractions
from droneseg.monitoring.prediction_log import PredictionLog, Record, _RecordWriter
from support.buckets import bucket


def record(number: int) -> Record:
    return Record(
        time=datetime(2026, 3, 4, 5, 6, 7, 8900, tzinfo=UTC),
        model_id="abc",
        width=number,
        height=1,
        class_fractions={},
        confidence=0.5,
        statistics={},
    )


class Counts(Counter[str]):
    """Adds up what a writer tells."""

    def __call__(self, outcome: str, number: int) -> None:
        self[outcome] += number


def lines(folder: Path) -> list[dict[str, object]]:
    files = sorted(folder.rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_records_are_written_soon_together_and_named_by_time(tmp_path: Path) -> None:
    counts = Counts()
    writer = _RecordWriter(str(tmp_path), count=counts)
    for number in range(5):
        writer.add(record(number))
    end = time.monotonic() + 10
    while counts["written"] < 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert [line["width"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4]
    (file,) = tmp_path.rglob("*.jsonl")
    assert str(file.relative_to(tmp_path)).startswith("2026/03/04/050607.008-")
    writer.close(5)


def test_flushing_waits_until_all_is_written_and_no_longer_than_it_may(tmp_path: Path) -> None:
    writer = _RecordWriter(str(tmp_path), count=Counts())
    for number in range(3):
        writer.add(record(number))
    writer.flush(10)
    assert len(lines(tmp_path)) == 3
    writer.flush(10)  # with nothing to write
    (tmp_path / "2026/03/04").rename(tmp_path / "away")
    (tmp_path / "2026/03/04").write_text("in the way")
    writer.add(record(4))
    begin = time.monotonic()
    writer.flush(1)
    assert 0.9 < time.monotonic() - begin < 5
    writer.close(0)


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    counts = Counts()
    writer = _RecordWriter(str(tmp_path), count=counts)
    writer.add(record(1))
    writer.close(5)
    assert len(lines(tmp_path)) == 1
    assert counts == {"written": 1}


def test_while_the_store_is_away_records_wait_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    counts = Counts()
    (tmp_path / "store").write_text("a file where a folder should be")
    writer = _RecordWriter(str(tmp_path / "store"), count=counts, capacity=3)
    for number in range(10):
        writer.add(record(number))
    assert counts["written"] == 0
    time.sleep(1.2)  # it has tried, and failed
    (tmp_path / "store").unlink()
    writer.close(10)
    assert [line["width"] for line in lines(tmp_path / "store")] == [7, 8, 9]
    assert counts == {"dropped": 7, "written": 3}


def test_closing_without_a_store_ends_and_counts_the_loss(tmp_path: Path) -> None:
    counts = Counts()
    (tmp_path / "store").write_text("in the way")
    writer = _RecordWriter(str(tmp_path / "store"), count=counts)
    writer.add(record(1))
    writer.close(3)
    assert counts == {"dropped": 1}


def test_records_go_to_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    with bucket("kept", monkeypatch) as kept:
        writer = _RecordWriter(f"{kept.url}/champion", count=counts)
        for number in range(3):
            writer.add(record(number))
        writer.close(20)
        assert counts == {"written": 3}
        store = fsspec.filesystem("gs", skip_instance_cache=True)
        (name,) = store.find("kept")
        assert name.startswith("kept/champion/2026/03/04/050607.008-")
        assert [json.loads(line)["width"] for line in store.cat(name).splitlines()] == [0, 1, 2]


def test_a_recorder_holds_few_photographs_and_counts_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, looking = Counts(), threading.Event()
    monkeypatch.setattr("droneseg.monitoring.prediction_log._AHEAD_BYTES", 1000)
    monkeypatch.setattr("droneseg.monitoring.prediction_log.image_statistics", lambda image: looking.wait(10) and {})
    recorder = PredictionLog(str(tmp_path), count=counts)
    image, mask = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.uint8)
    prediction = Prediction(mask, class_fractions(mask), 0.75, {}, "abc")
    for _ in range(5):  # of 300 bytes
        recorder.keep(None, image, prediction)
    assert counts == {"dropped": 2}
    looking.set()
    recorder.close(5)
    recorder.keep(None, image, prediction)
    assert counts == {"dropped": 3, "written": 3}


def test_a_record_holds_no_name_but_its_hash_and_no_picture(tmp_path: Path) -> None:
    counts = Counts()
    recorder = PredictionLog(str(tmp_path), count=counts)
    image = np.full((8, 10, 3), 51, np.uint8)
    mask = np.full((8, 10), 5, np.uint8)
    recorder.keep("my garden.png", image, Prediction(mask, class_fractions(mask), 0.75, {}, "abc"))
    recorder.close(5)
    (found,) = lines(tmp_path)
    assert "garden" not in json.dumps(found)
    assert len(str(found["source"])) == 64
    assert (found["width"], found["height"], found["confidence"]) == (10, 8, 0.75)
    assert found["class_fractions"]["landing-zones"] == 1  # type: ignore[index]
    assert found["statistics"]["brightness"] == pytest.approx(0.2, abs=1e-3)  # type: ignore[index]
