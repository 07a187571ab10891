"""Report of training steps: estimate, lines within an epoch, records for a progress bar."""

import logging
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.image_files import list_cases
from droneseg.core.masks import read_mask
from droneseg.core.overlay import blend
from droneseg.nnunet import callbacks
from droneseg.nnunet.callbacks import Reporter, duration, step_logger
from droneseg.nnunet.optimization import Progress
from droneseg.nnunet.trainer_settings import TrainerSettings
from support.raw_datasets import make_raw_dataset


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (89 * 60, "89 min"), (170 * 60, "2 h 50 min"), (7201, "2 h 0 min")],
)
def test_duration_has_at_most_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_steps_are_reported_to_the_log_and_to_progress_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[logging.LogRecord] = []
    bars: list[logging.LogRecord] = []
    for logger, records in ((callbacks.logger, lines), (step_logger, bars)):
        monkeypatch.setattr(logger, "handlers", [_Recording(records)])
        monkeypatch.setattr(logger, "propagate", False)
        caplog.set_level(logging.INFO, logger.name)  # sets it by the method, which forgets the levels of earlier tests
    now = [1000.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    settings = TrainerSettings(epochs=200, iterations=60, val_iterations=6)
    reporter = Reporter(tmp_path, tmp_path, DEFAULT_CLASSES, settings)
    progress = Progress(settings, lambda _series: [], lambda: now[0])
    progress.epoch_started(now[0])
    for _ in range(60):
        now[0] += 2.0
        progress.step_ended()
        reporter.step_ended(progress, 0, 0.5)
    messages = [record.getMessage() for record in lines]
    # 200 epochs of 60 steps of 2 s, and 6 validation steps of 1 s
    assert messages[0] == "about 7 h 0 min for 200 epochs, 2 min for an epoch; Ctrl-C keeps the last finished epoch"
    assert messages[1] == "epoch 1/200  step 20/60  loss 0.500  2.00 s per step  about 6 h 59 min left"
    assert len(messages) == 4, "a line every 30 s"
    assert [record.bar["step"] for record in bars] == list(range(1, 61))  # type: ignore[attr-defined]  # extra


@pytest.mark.parametrize(("channels", "suffix"), [("", ".png"), ("BGR", ".png"), ("", ".tif"), ("RGB", ".bmp")])
def test_validation_overlays_are_drawn_over_images_of_every_format(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, channels: str, suffix: str
) -> None:
    raw = make_raw_dataset(tmp_path / "raw", channels=channels, suffix=suffix)
    rgb = make_raw_dataset(tmp_path / "rgb")  # the same scenes
    validation = tmp_path / "fold_0/validation"
    validation.mkdir(parents=True)
    for file in (raw / "labelsTr").glob(f"*{suffix}"):
        (validation / file.name).write_bytes(file.read_bytes())
    (validation / f"moved{suffix}").write_bytes((validation / f"tr0{suffix}").read_bytes())
    (validation / "summary.json").write_text("{}")
    caplog.set_level(logging.WARNING, callbacks.logger.name)
    reporter = Reporter(tmp_path / "fold_0", raw / "imagesTr", DEFAULT_CLASSES, TrainerSettings())
    overlays = reporter._overlays()
    assert list(overlays) == ["tr0", "tr1"]
    assert f"no overlay of moved: its image is not in {raw / 'imagesTr'}" in caplog.text
    for image in list_cases(rgb / "imagesTr"):
        mask = read_mask(rgb / "labelsTr" / f"{image.stem}.png", "ids", DEFAULT_CLASSES)
        assert np.array_equal(overlays[image.stem], blend(image.decode(), mask, DEFAULT_CLASSES))


class _Recording(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.INFO)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
