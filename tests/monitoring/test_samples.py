"""Sampled images are stored, found by confidence and deleted by age and size."""

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image as pillow

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import OutputExistsError, RecordsError
from droneseg.core.masks import encode_mask
from droneseg.core.prediction import Prediction, class_fractions, image_statistics
from droneseg.monitoring.log_reader import fetch_hard_cases, find_hard_cases, read_recent_records
from droneseg.monitoring.prediction_log import PredictionLog, Sample
from droneseg.monitoring.retention import prune
from support.buckets import bucket
from support.drift import NOON, keep, make_bundle_with_reference, records_like
from support.workspace import Workspace

IMAGE = np.full((8, 10, 3), 51, np.uint8)
MASK = np.full((8, 10), 5, np.uint8)


def as_jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    pillow.fromarray(image).save(data, "JPEG")
    return data.getvalue()


def predicted(confidence: float, image: np.ndarray = IMAGE) -> Prediction:
    fractions = class_fractions(MASK, DEFAULT_CLASSES)
    return Prediction(MASK, DEFAULT_CLASSES, fractions, confidence, {}, "abc", statistics=image_statistics(image))


def record(folder: Path | str, confidences: list[float], *, share: float = 1.0, names: bool = False) -> Counter[str]:
    """Log predictions of images a.jpg, b.jpg, ...; return the number of samples by outcome."""
    counts: Counter[str] = Counter()
    log = PredictionLog(
        str(folder),
        count_records=lambda *_: None,
        count_samples=lambda result, number: counts.update({result: number}),
        sample_share=share,
        keep_names=names,
    )
    for index, confidence in enumerate(confidences):
        log.log(
            f"{chr(97 + index)}.jpg",
            predicted(confidence),
            Sample(as_jpeg(IMAGE + index), encode_mask(MASK, DEFAULT_CLASSES)),
        )
        log.flush(10)
    log.close(10)
    return counts


def test_no_image_is_stored_by_default(tmp_path: Path) -> None:
    assert record(tmp_path, [0.5, 0.6], share=0.0) == {}
    assert not (tmp_path / "samples").exists()
    assert [record.sample for record in read_recent_records(str(tmp_path), 9).records] == [None, None]


def test_a_record_states_where_its_sample_is_stored(tmp_path: Path) -> None:
    assert record(tmp_path, [0.5, 0.6], names=True) == {"written": 2}
    first, second = read_recent_records(str(tmp_path), 9).records
    assert (first.source, second.source) == ("a.jpg", "b.jpg")
    assert first.sample is not None
    kept = tmp_path / first.sample
    assert kept.read_bytes() == as_jpeg(IMAGE)
    assert np.array_equal(np.asarray(pillow.open(kept.with_suffix(".mask.png"))), MASK)


def test_the_sample_share_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.1, 0.3, 0.24, 0.9])
    monkeypatch.setattr("droneseg.monitoring.prediction_log.random.random", lambda: next(drawn))
    assert record(tmp_path, [0.5] * 4, share=0.25) == {"written": 2}
    assert [record.sample is None for record in read_recent_records(str(tmp_path), 9).records] == [
        False,
        True,
        False,
        True,
    ]


def test_a_record_is_written_although_its_sample_fails(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    assert record(tmp_path, [0.5]) == {"dropped": 1}
    assert len(read_recent_records(str(tmp_path), 9).records) == 1


def test_samples_beyond_the_memory_limit_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("droneseg.monitoring.prediction_log._MAX_SAMPLE_BYTES", 1)
    counts: Counter[str] = Counter()
    log = PredictionLog(
        str(tmp_path),
        count_records=lambda *_: None,
        count_samples=lambda result, number: counts.update({result: number}),
        sample_share=1.0,
    )
    sample = Sample(as_jpeg(IMAGE), encode_mask(MASK, DEFAULT_CLASSES))
    assert log._samples.add(NOON, sample) is not None  # the worker sleeps until something is logged
    assert log._samples.add(NOON, sample) is None
    log.close(10)
    assert counts == {"dropped": 1, "written": 1}


def test_hard_cases_are_sorted_and_list_each_image_once(tmp_path: Path) -> None:
    record(tmp_path, [0.9, 0.4, 0.7], names=True)
    record(tmp_path, [0.3], names=True)  # a.jpg again: its newest record counts
    cases = find_hard_cases(str(tmp_path), 2, last=100)
    assert [(case.source, case.confidence) for case in cases] == [("a.jpg", 0.3), ("b.jpg", 0.4)]
    assert [case.source for case in find_hard_cases(str(tmp_path), 9, last=2)] == ["a.jpg", "c.jpg"]


def test_images_with_equal_names_are_different_hard_cases(tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path), count_records=lambda *_: None, keep_names=True)
    for brightness, confidence in ((10, 0.5), (60, 0.3), (60, 0.2), (110, 0.4)):
        log.log("DJI_0001.JPG", predicted(confidence, np.full((8, 10, 3), brightness, np.uint8)))
    log.close(10)
    cases = find_hard_cases(str(tmp_path), 9, last=100)
    assert [case.confidence for case in cases] == [0.2, 0.4, 0.5]


def test_a_sampled_record_counts_although_a_later_one_was_not_sampled(tmp_path: Path) -> None:
    record(tmp_path, [0.3])
    record(tmp_path, [0.3], share=0.0)
    assert [case.sample is not None for case in find_hard_cases(str(tmp_path), 9, last=9, sampled=True)] == [True]


def test_only_samples_are_copied(tmp_path: Path) -> None:
    record(tmp_path / "records", [0.5])
    (tmp_path / "secret.txt").write_text("secret")
    (case,) = find_hard_cases(str(tmp_path / "records"), 1, last=9)
    for path in ("../secret.txt", "samples/2026/03/04/../../../../../secret.txt", "."):
        with pytest.raises(RecordsError, match="None of these images is stored"):
            fetch_hard_cases(str(tmp_path / "records"), [replace(case, sample=path)], tmp_path / "out")


def test_hard_cases_are_copied_with_their_masks(tmp_path: Path) -> None:
    record(tmp_path / "records", [0.9, 0.4, 0.7], names=True)
    cases = find_hard_cases(str(tmp_path / "records"), 3, last=100, sampled=True)
    (tmp_path / "records" / str(cases[2].sample)).unlink()  # pruned meanwhile
    out = tmp_path / "hard"
    assert fetch_hard_cases(str(tmp_path / "records"), cases, out) == 2
    assert sorted(file.name for file in out.iterdir()) == [
        "001.jpg", "001.mask.png", "002.jpg", "002.mask.png", "hard-cases.json",
    ]  # fmt: skip
    assert (out / "001.jpg").read_bytes() == as_jpeg(IMAGE + 1)
    assert json.loads((out / "hard-cases.json").read_text())[0]["source"] == "b.jpg"
    with pytest.raises(OutputExistsError):
        fetch_hard_cases(str(tmp_path / "records"), cases, out)


def test_errors_without_records_or_samples_state_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="There are no records at"):
        find_hard_cases(str(tmp_path), 5, last=100)
    record(tmp_path, [0.5], share=0.0)
    with pytest.raises(RecordsError, match="Set DRONESEG_SAMPLE_SHARE"):
        fetch_hard_cases(str(tmp_path), find_hard_cases(str(tmp_path), 5, last=100), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_lists_and_copies_hard_cases(tmp_path: Path) -> None:
    record(tmp_path / "records", [0.9, 0.4], names=True)
    workspace = Workspace(tmp_path)
    (first, second) = json.loads(workspace.run("data", "hard-cases", "--json").stdout)
    assert (first["source"], second["source"]) == ("b.jpg", "a.jpg")
    done = workspace.run("data", "hard-cases", "--n", "1", "--out", "hard")
    assert "hard: 1 images and their masks" in done.stderr
    assert "b.jpg" in done.stdout
    assert (tmp_path / "hard/001.jpg").is_file()


def test_prune_deletes_old_files_of_the_service_only(tmp_path: Path) -> None:
    bundle = make_bundle_with_reference(tmp_path / "champion")
    folder = tmp_path / "records"
    keep(folder, records_like(bundle, 40, over=timedelta(days=20)))
    record(folder, [0.5])
    foreign = [
        folder / name
        for name in (
            "README.md", "2020/01/01/notes.txt", "samples/mine.jpg", "2020/01/01/000000.000-abcdef12.mine/notes.txt",
            "2020/01/01/000000.000-abcdef12.jsonl.bak", "2026/99/99/000000.000-abcdef12.jsonl",
            "x/2020/01/01/000000.000-abcdef12.jsonl",
        )
    ]  # fmt: skip
    keep(tmp_path / "record[s]", records_like(bundle, 1))
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    before = len(list(folder.rglob("*.jsonl")))
    pruned = prune(str(folder), days=10, megabytes=0, today=NOON.date())
    days = {record.time.date() for record in read_recent_records(str(folder), 1000, bundle.model_id).records}
    assert min(days) == date(2026, 3, 10)
    assert pruned.files == before - len(list(folder.rglob("*.jsonl"))) > 0
    assert not (folder / "2026/03/02").exists(), "an empty folder is left"
    assert all(file.is_file() for file in foreign)
    assert prune(str(tmp_path / "record[s]"), days=10, megabytes=0, today=date(2027, 1, 1)).files == 1
    assert len(list(folder.rglob("samples/*/*/*/*"))) == 2, "today's sample"


def test_prune_deletes_old_reports(tmp_path: Path) -> None:
    for day in ("2026/03/01", "2026/03/19"):
        for name in ("drift.html", "drift.json", "mine.html"):
            file = tmp_path / day / "drift-060000-abcdef" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("a report")
    assert prune(str(tmp_path), days=10, megabytes=0, today=NOON.date()).files == 2
    assert len(list(tmp_path.rglob("*.html"))) == 3


def test_prune_deletes_the_oldest_files_beyond_the_size_limit(tmp_path: Path) -> None:
    bundle = make_bundle_with_reference(tmp_path / "champion")
    folder = tmp_path / "records"
    files = keep(folder, records_like(bundle, 10))
    for file in files:
        file.write_bytes(b"x" * 300_000)
    assert prune(str(folder), days=0, megabytes=1).files == 7
    assert [file.exists() for file in files] == [False] * 7 + [True] * 3
    assert prune(str(folder), days=0, megabytes=0).files == 0
    assert prune(str(tmp_path / "nothing"), days=1, megabytes=1).files == 0


def test_a_bucket_is_read_pruned_and_copied_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle_with_reference(tmp_path / "champion")
    with bucket("flights", monkeypatch) as flights:
        url = f"{flights.url}/champion"
        record(url, [0.5, 0.4])
        keep(tmp_path / "records", records_like(bundle, 30, over=timedelta(days=9)))
        store = fsspec.filesystem("gs", skip_instance_cache=True)
        store.put(f"{tmp_path / 'records'}/", f"{url}/", recursive=True)
        assert len(read_recent_records(url, 100).records) == 32
        assert len(read_recent_records(url, 5, bundle.model_id).records) == 5
        pruned = prune(url, days=5, megabytes=0, today=NOON.date())
        assert 10 < pruned.files < 30
        assert len(read_recent_records(url, 100).records) == 32 - pruned.files
        cases = find_hard_cases(url, 1, last=100, sampled=True)
        assert fetch_hard_cases(url, cases, tmp_path / "hard") == 1
