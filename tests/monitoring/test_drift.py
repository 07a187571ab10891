"""The drift test finds changes and only changes; the report states what changed and since when."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image as pillow
from PIL import ImageFilter

from droneseg.core.camera import given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DriftError
from droneseg.data.synthetic import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import Bundle, file_record, read_bundle
from droneseg.monitoring.drift import (
    MIN_RECORDS,
    Reference,
    features_of,
    find_drift,
    image_features,
    p_value,
    read_reference,
    record_features,
)
from droneseg.monitoring.drift_report import make_report, sentences, verdict
from droneseg.monitoring.log_reader import read_recent_records
from droneseg.monitoring.prediction_log import PredictionLog, Record
from support.bundles import TRAINED_AT, VIEWS, make_bundle
from support.drift import NOON, darker, keep, make_bundle_with_reference, photographs, records_like, with_statistics
from support.waiting import HANG_S
from support.workspace import Workspace

FEATURES = features_of(DEFAULT_CLASSES)
NAMES = tuple(feature.name for feature in FEATURES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle_with_reference(tmp_path_factory.mktemp("model") / "champion")


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Reference:
    return read_reference(bundle)


def test_reference_holds_image_statistics_and_predictions(bundle: Bundle, reference: Reference) -> None:
    assert (reference.images, reference.source) == (40, "40 photographs of noise")
    assert tuple(reference.table) == NAMES
    assert np.mean(reference.table["brightness"]) == pytest.approx(np.mean(photographs()) / 255, abs=0.02)
    shares = np.sum([reference.table[name] for name in NAMES if name.startswith("share_")], axis=0)
    assert shares == pytest.approx(np.ones(40), abs=1e-5)
    assert set(reference.table["megapixels"]) == {24 * 32 / 1e6}


def test_a_camera_with_more_pixels_is_not_drift_by_itself(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", patch=(768, 960), ground=TRAINED_AT, context=VIEWS)
    segmenter = BundleSegmenter(bundle)
    # a lens blurs each point over about a pixel; generated scenes have noise in single pixels, which enlarging removes
    blurred = pillow.fromarray(generate_scene(3, 960, 736)[0]).filter(ImageFilter.GaussianBlur(1))
    scene, enlarged = np.asarray(blurred), np.asarray(blurred.resize((3840, 2944), pillow.Resampling.BICUBIC))
    log = PredictionLog(str(tmp_path / "records"), count_records=lambda *_: None)
    for image, gsd_m in ((scene, 0.025), (enlarged, 0.025 / 4), (enlarged, None)):
        log.log(None, segmenter.segment(image, given_ground(gsd_m)))
    log.close(HANG_S)
    own, known, unknown = read_recent_records(str(tmp_path / "records"), 3).records
    assert (known.width, known.height) == (3840, 2944)
    assert (known.seen_width, known.seen_height) == (960, 736)
    assert record_features(known, FEATURES) == pytest.approx(record_features(own, FEATURES), rel=0.02, abs=0.003)
    assert record_features(known, FEATURES) == pytest.approx(
        image_features(segmenter, enlarged, given_ground(0.025 / 4))
    )
    assert unknown.seen_width == 1920  # nothing says that it shows the same scene
    assert [code.value for code in unknown.ground.warnings] == ["unknown_scale"]  # type: ignore[union-attr]


def test_records_of_earlier_versions_are_read(bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
    records = records_like(bundle, 30)
    (file,) = keep(tmp_path, records, in_a_file=30)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        for name in ("seen_width", "seen_height", "ground"):
            assert line.pop(name) is None
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read_recent_records(str(tmp_path), 100, bundle.model_id)
    assert (page.records, page.unreadable) == (records, [])
    assert record_features(page.records[0], FEATURES)["megapixels"] == pytest.approx(32 * 24 / 1e6, abs=1e-6)
    assert not find_drift(reference, page.records).drifted


def test_unchanged_images_are_not_drift(bundle: Bundle, reference: Reference) -> None:
    drift = find_drift(reference, records_like(bundle, 60))
    assert not drift.drifted
    assert (drift.share, drift.changed, drift.since) == (0, (), None)
    assert verdict(drift) == "No drift: the last 60 images are similar to the validation images."
    assert sentences(drift) == []


def test_false_alarms_are_rare(reference: Reference) -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        order = rng.permutation(40)
        called += any(
            p_value([values[index] for index in order[:20]], [values[index] for index in order[20:]])
            < reference.threshold
            for values in reference.table.values()
        )
    assert called <= 10  # 5 %


CHANGES: dict[str, tuple[Callable[[Record], Record], str]] = {
    "brightness": (darker, "The images are darker: brightness "),
    "warmth": (
        lambda record: with_statistics(record, warmth=record.statistics["warmth"] + 0.2),
        "The images are redder: ",
    ),
    "noise": (lambda record: with_statistics(record, noise=0.0), "The images are less noisy: noise 0 instead of "),
    "megapixels": (lambda record: record.model_copy(update={"width": 64}), "The images are larger: megapixels "),
    "confidence": (
        lambda record: record.model_copy(update={"confidence": 0.1}),
        "The images are predicted with less confidence: ",
    ),
    "share_water": (
        lambda record: record.model_copy(update={"class_fractions": {**record.class_fractions, "water": 0.99}}),
        "The images show a larger share of water: ",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_described(bundle: Bundle, reference: Reference, name: str) -> None:
    changed, beginning = CHANGES[name]
    drift = find_drift(reference, records_like(bundle, MIN_RECORDS, changed=changed))
    assert drift.drifted
    assert [item.feature.name for item in drift.changed] == [name]
    assert drift.share == pytest.approx(1 / len(FEATURES))
    assert sentences(drift)[0].startswith(beginning)


def test_a_change_of_width_alone_is_found(bundle: Bundle, reference: Reference) -> None:
    middle = float(np.median(reference.table["warmth"]))
    drift = find_drift(
        reference, records_like(bundle, 60, changed=lambda record: with_statistics(record, warmth=middle))
    )
    assert "The distribution of warmth has changed" in sentences(drift)[0]


def test_the_first_different_day_is_reported(bundle: Bundle, reference: Reference) -> None:
    begin = NOON - timedelta(days=1, hours=12)

    def since(record: Record) -> Record:
        return darker(record) if record.time >= begin else record

    records = records_like(bundle, 100, changed=since, over=timedelta(days=4))
    drift = find_drift(reference, records)
    assert drift.since == date(2026, 3, 19)
    assert sentences(drift)[0].endswith("since 2026-03-19.")
    # the median of the images since that day, not of all images
    current = next(item.median for item in drift.features if item.feature.name == "brightness")
    assert current == pytest.approx(
        np.median([record.statistics["brightness"] for record in records if record.time >= begin]), rel=0.01
    )
    over = find_drift(reference, records_like(bundle, 100, changed=darker, over=timedelta(days=3)))
    assert sentences(over)[0].endswith(", since 2026-03-17 or earlier.")


def test_too_few_records_are_refused(bundle: Bundle, reference: Reference) -> None:
    with pytest.raises(DriftError, match="There are 19 records; the drift test needs at least 20"):
        find_drift(reference, records_like(bundle, MIN_RECORDS - 1))


def test_a_small_reference_is_refused(bundle: Bundle, reference: Reference) -> None:
    few = Reference("few", FEATURES, {name: values[:19] for name, values in reference.table.items()})
    with pytest.raises(DriftError, match="The drift reference was made from 19 images; at least 20 are needed"):
        find_drift(few, records_like(bundle, 40))


def test_only_the_newest_records_are_read(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_like(bundle, 300, over=timedelta(days=200))
    keep(tmp_path, records)
    read: list[str] = []
    real = LocalFileSystem.cat_file

    def cat_file(self: LocalFileSystem, name: str) -> object:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    page = read_recent_records(str(tmp_path), 50, bundle.model_id)
    assert page.records == records[-50:]
    assert len(read) == 50


def test_records_of_several_instances_are_sorted_by_time(bundle: Bundle, tmp_path: Path) -> None:
    records = records_like(bundle, 300)
    keep(tmp_path, records[::2], in_a_file=40)
    keep(tmp_path, records[1::2], in_a_file=7)
    assert read_recent_records(str(tmp_path), 300).records == records
    assert read_recent_records(str(tmp_path), 10_000).records == records


def test_unreadable_records_and_other_models_are_skipped_and_listed(bundle: Bundle, tmp_path: Path) -> None:
    records = records_like(bundle, 60)
    mixed = [
        record.model_copy(update={"model_id": "another"}) if index % 3 == 0 else record
        for index, record in enumerate(records)
    ]
    files = keep(tmp_path, mixed)
    files[1].write_text("no record\n")
    (files[2].parent / "README.md").write_text("not a record")
    page = read_recent_records(str(tmp_path), 100, bundle.model_id)
    assert len(page.records) == 39
    assert page.other_models == {"another": 20}
    assert [Path(line).name for line in page.unreadable] == [f"{files[1].name}:1"]


BAD: dict[str, dict[str, object]] = {
    "a class is missing": {"class_fractions": {}},
    "a figure is missing": {"statistics": {"brightness": 0.5}},
    "a time without zone": {"time": "2026-03-20T06:00:00"},
    "a size that is none": {"width": 10**400},
    "no number": {"confidence": "NaN"},
    "endless": {"statistics": {"brightness": 1e999}},
    "another field": {"more": 1},
}


@pytest.mark.parametrize("what", BAD)
def test_an_invalid_record_does_not_affect_the_others(
    bundle: Bundle, reference: Reference, tmp_path: Path, what: str
) -> None:
    records = records_like(bundle, 30, changed=darker)
    (file,) = keep(tmp_path, records, in_a_file=30)
    good = json.loads(records[0].model_dump_json())
    with file.open("a") as lines:
        lines.write(json.dumps(good | BAD[what]) + "\n")
        lines.write(json.dumps(good | {"statistics": good["statistics"] | {"brightness": float("nan")}}) + "\n")
    page = read_recent_records(str(tmp_path), 100, bundle.model_id, reference.features)
    assert page.records == records
    assert [line.rpartition(":")[2] for line in page.unreadable] == ["31", "32"]
    assert [item.feature.name for item in find_drift(reference, page.records).changed] == ["brightness"]


def test_records_from_the_future_are_skipped(bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path, records_like(bundle, 30))
    keep(tmp_path, records_like(bundle, 30, last=NOON.replace(year=2099)))
    page = read_recent_records(str(tmp_path), 30, bundle.model_id)
    assert {record.time.year for record in page.records} == {2026}
    assert [Path(day).relative_to(tmp_path).as_posix() for day in page.future_days] == ["2099/03/20"]


def test_a_folder_name_with_brackets_is_not_a_pattern(bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "t_[1]", records_like(bundle, 25))
    keep(tmp_path / "t_1", records_like(bundle, 5))
    assert len(read_recent_records(str(tmp_path / "t_[1]"), 100).records) == 25


def test_reading_stops_after_many_damaged_files(bundle: Bundle, tmp_path: Path) -> None:
    for file in keep(tmp_path, records_like(bundle, 900)):
        file.write_text("damaged\n")
    assert len(read_recent_records(str(tmp_path), 20).unreadable) < 900


def test_a_slightly_different_image_size_is_not_drift(bundle: Bundle, reference: Reference) -> None:
    records = records_like(bundle, 30, changed=lambda record: record.model_copy(update={"width": 32, "height": 24}))
    slightly = [record.model_copy(update={"width": 1000, "height": 707}) for record in records]
    usual = Reference("", FEATURES, reference.table | {"megapixels": [0.70656] * 40})
    assert not find_drift(usual, slightly).drifted
    assert find_drift(usual, [record.model_copy(update={"height": 640}) for record in slightly]).drifted


def test_reading_stops_after_many_records_of_another_model(bundle: Bundle, tmp_path: Path) -> None:
    others = [record.model_copy(update={"model_id": "old"}) for record in records_like(bundle, 3000)]
    keep(tmp_path, others, in_a_file=20)
    page = read_recent_records(str(tmp_path), 20, bundle.model_id)
    assert page.records == []
    assert 320 <= page.other_models["old"] < 3000


def test_the_report_describes_the_change_in_text_plots_and_json(bundle: Bundle, tmp_path: Path) -> None:
    records = records_like(bundle, 80, changed=lambda record: darker(record) if record.time.hour >= 10 else record)
    keep(tmp_path / "records", records)
    result = make_report(bundle.folder, str(tmp_path / "records"), str(tmp_path / "reports"), 200)
    assert result.drifted
    assert (result.records, result.share) == (80, pytest.approx(1 / 14))
    html_file = Path(result.url.removeprefix("file://"))
    assert (html_file.name, html_file.parents[4]) == ("drift.html", tmp_path / "reports")
    text = html_file.read_text()
    for text_part in (
        "The images are darker: brightness",
        "40 photographs of noise",
        bundle.model_id,
        "Kolmogorov-Smirnov",
    ):
        assert text_part in text
    assert text.count("data:image/png;base64,") == 2
    assert "Dataset Drift is detected" in text, "Evidently's own verdict"
    figures = json.loads((html_file.parent / "drift.json").read_text())
    assert figures["drifted"]
    assert set(figures["features"]) == set(NAMES)
    assert figures["features"]["brightness"]["drifted"]
    assert figures["days"] == {"2026-03-20": 80}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Evidently, when imported
def test_p_values_equal_those_of_evidently(bundle: Bundle, reference: Reference) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    records = records_like(bundle, 50, changed=darker)
    frames = pd.DataFrame([record_features(record, FEATURES) for record in records]), pd.DataFrame(reference.table)
    definition = DataDefinition(numerical_columns=list(NAMES))
    now, before = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    measured = Report([ValueDrift(column=name, method="ks") for name in NAMES]).run(now, before).dict()["metrics"]
    theirs = {metric["config"]["column"]: metric["value"] for metric in measured}
    ours = {item.feature.name: item.p_value for item in find_drift(reference, records).features}
    assert ours == pytest.approx(theirs)


def test_errors_name_what_a_report_lacks(bundle: Bundle, tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain")
    records, reports = str(tmp_path / "records"), str(tmp_path / "reports")
    with pytest.raises(DriftError, match=r"has no drift reference. Add one with `droneseg models reference`"):
        make_report(plain.folder, records, reports, 200)
    with pytest.raises(DriftError, match=r"holds 0 records of model .*; a report needs at least 20"):
        make_report(bundle.folder, records, reports, 200)
    others = [record.model_copy(update={"model_id": "old"}) for record in records_like(bundle, 30)]
    files = keep(tmp_path / "records", [*others, *records_like(bundle, 5)])
    files[0].write_text("{")
    with pytest.raises(DriftError, match=r"holds 5 records .* \(skipped: 29 of model old; 1 cannot be read, "):
        make_report(bundle.folder, records, reports, 200)
    with pytest.raises(DriftError, match="DRONESEG_RECORDS_URL is none, but a drift report needs it"):
        make_report(bundle.folder, "none", reports, 200)
    with pytest.raises(DriftError, match="DRONESEG_REPORTS_URL is none"):
        make_report(bundle.folder, records, "none", 200)
    with pytest.raises(DriftError, match=r"runs model older, .* POST /admin/reload"):
        make_report(bundle.folder, records, reports, 200, active_id="older")
    assert not (tmp_path / "reports").exists()


def test_a_reference_of_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in bundle.folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    table = (other / "reference.csv").read_text().replace("warmth", "temperature")
    (other / "reference.csv").write_text(table)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["reference.csv"] = file_record(other / "reference.csv").model_dump()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DriftError, match="was made by another version of droneseg"):
        read_reference(read_bundle(other))


def test_the_command_writes_the_report_and_prometheus_metrics(bundle: Bundle, tmp_path: Path) -> None:
    keep(tmp_path / "records", records_like(bundle, 40, changed=darker))
    workspace = Workspace(tmp_path)
    arguments = ("drift", "--model", str(bundle.folder), "--records", str(tmp_path / "records"))
    done = workspace.run(*arguments, "--metrics", "drift.prom", "--json")
    result = json.loads(done.stdout)
    assert result["drifted"]
    assert result["url"].startswith(f"file://{tmp_path / 'reports'}")
    assert "droneseg_drift 1.0" in (tmp_path / "drift.prom").read_text()
    failed = workspace.run("drift", "--model", str(bundle.folder), "--records", str(tmp_path / "none"), check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {tmp_path / 'none'} holds 0 records")
