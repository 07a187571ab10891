"""Settings from the environment, and text and JSON logs."""

import json
import logging
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.core.logs import configure_logging, log_file
from droneseg.core.settings import LogFormat, LogLevel, load_settings, misspelt_variables, variable_names


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRONESEG_MAX_PIXELS", "77")
    monkeypatch.setenv("nnUNet_raw", "/somewhere")
    settings = load_settings()
    assert settings.max_pixels == 77
    assert settings.nnunet_raw == Path("/somewhere")


def test_port_is_read_from_the_variable_of_cloud_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "9001")
    assert load_settings().port == 9001
    monkeypatch.setenv("DRONESEG_PORT", "9002")
    assert load_settings().port == 9002
    monkeypatch.setenv("DRONESEG_PORT", "none")
    with pytest.raises(ConfigurationError, match="DRONESEG_PORT='none'"):
        load_settings()


def test_error_lists_all_invalid_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRONESEG_MAX_PIXELS", "0")
    monkeypatch.setenv("DRONESEG_LOG_FORMAT", "xml")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "DRONESEG_MAX_PIXELS='0'" in str(caught.value)
    assert "DRONESEG_LOG_FORMAT='xml'" in str(caught.value)


def test_misspelt_setting_is_reported_and_other_variables_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRONESEG_PROFIL", "fast")
    monkeypatch.setenv("DRONESEG_SOMETHING_ELSE", "1")
    monkeypatch.setenv("droneseg_model", "x")
    Path(".env").write_text("DRONESEG_MAX_PIXEL=9\nDRONESEG_MODEL=y\n")
    assert misspelt_variables() == {"DRONESEG_PROFIL": "DRONESEG_PROFILE", "DRONESEG_MAX_PIXEL": "DRONESEG_MAX_PIXELS"}


def test_env_example_lists_every_setting_and_no_other() -> None:
    example = Path(__file__).parents[2] / ".env.example"
    listed = {
        line.removeprefix("# ").split("=")[0]
        for line in example.read_text().splitlines()
        if "=" in line and " " not in line.removeprefix("# ").split("=")[0]
    }
    assert listed == set(variable_names())


def test_json_log_line_contains_the_record_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    logging.getLogger("droneseg.test").info("answered", extra={"fields": {"request_id": "r1", "status": 200}})
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["request_id"], line["status"]) == ("answered", "r1", 200)


def test_json_log_goes_to_terminal_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    with log_file(tmp_path / "a.log", LogFormat.JSON):
        logging.getLogger("droneseg.test").info("hello %s", "there")
    logging.getLogger("droneseg.test").info("after")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["message"], first["severity"], second["message"]) == ("hello there", "INFO", "after")
    assert [json.loads(line)["message"] for line in (tmp_path / "a.log").read_text().splitlines()] == ["hello there"]
