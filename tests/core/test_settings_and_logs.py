"""Settings come from the environment, wrong ones are listed; logs are text or JSON."""

import json
import logging
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.core.logs import configure_logging, log_file
from droneseg.core.settings import LogFormat, LogLevel, load_settings, misspelt_variables, variable_names


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRONESEG_MAX_PIXELS", "77")
    monkeypatch.setenv("nnUNet_raw", "/somewhere")
    settings = load_settings()
    assert settings.max_pixels == 77
    assert settings.nnunet_raw == Path("/somewhere")


def test_the_port_may_come_as_cloud_run_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "9001")
    assert load_settings().port == 9001
    monkeypatch.setenv("DRONESEG_PORT", "9002")
    assert load_settings().port == 9002
    monkeypatch.setenv("DRONESEG_PORT", "none")
    with pytest.raises(ConfigurationError, match="DRONESEG_PORT='none'"):
        load_settings()


def test_all_wrong_settings_are_listed_by_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRONESEG_MAX_PIXELS", "0")
    monkeypatch.setenv("DRONESEG_LOG_FORMAT", "xml")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "DRONESEG_MAX_PIXELS='0'" in str(caught.value)
    assert "DRONESEG_LOG_FORMAT='xml'" in str(caught.value)


def test_a_misspelt_setting_is_told_from_other_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_fields_of_a_log_line_stand_beside_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    logging.getLogger("droneseg.test").info("answered", extra={"fields": {"request_id": "r1", "status": 200}})
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["request_id"], line["status"]) == ("answered", "r1", 200)


def test_json_log_lines_are_objects_in_terminal_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    with log_file(tmp_path / "a.log", LogFormat.JSON):
        logging.getLogger("droneseg.test").info("hello %s", "there")
    logging.getLogger("droneseg.test").info("after")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["message"], first["severity"], second["message"]) == ("hello there", "INFO", "after")
    assert [json.loads(line)["message"] for line in (tmp_path / "a.log").read_text().splitlines()] == ["hello there"]
