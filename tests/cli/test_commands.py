"""Tests of the commands: output, error messages and exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from droneseg.cli import console
from droneseg.cli.main import app
from droneseg.data.dataset import KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.training.config import preset_names, training_keys
from support.bundles import make_bundle
from support.projects import make_photographs
from support.waiting import HANG_S, wait_until
from support.workspace import Workspace

NOT_A_FOLDER = "absent is not a folder. Pass a dataset folder."


def droneseg(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return Workspace(cwd).run(*arguments, check=False)


@pytest.mark.parametrize(
    "command", [[], ["data"], ["data", "convert"], ["train"], ["export"], ["predict"], ["benchmark"], ["demo"]]
)
def test_every_command_has_help(command: list[str], tmp_path: Path) -> None:
    done = droneseg(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: droneseg" in done.stdout


@pytest.mark.parametrize("group", ["", "data", "models"])
def test_help_lists_every_command_with_a_complete_line(group: str) -> None:
    shown = CliRunner().invoke(app, [*group.split(), "--help"], terminal_width=80, prog_name="droneseg").output
    commands = typer.main.get_command(app)
    commands = commands.commands[group] if group else commands
    for name, command in commands.commands.items():
        first_line = command.help.partition("\n")[0]
        assert (re.search(rf"^  {name} +{re.escape(first_line)}$", shown, re.MULTILINE) is not None) != command.hidden


def test_help_of_train_lists_all_presets() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], terminal_width=400).output
    listed = re.search(r"preset=([a-z|]+)", shown)
    assert listed is not None
    assert sorted(listed[1].split("|")) == preset_names()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "convert", "DIR", "--box-weight", "2"], "needs --boxes FILE"),
        (["data", "convert", "DIR", "--split", "split.json", "--test-share", "0.1"], "cannot be combined with --split"),
        (["models", "upgrade", "A", "--out", "B", "--split", "split.json"], "needs --data FOLDER"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments, terminal_width=200)
    assert done.exit_code == 2
    assert words in done.output


def test_commands_in_hints_are_quoted_for_the_shell() -> None:
    assert console.command("data", "check", Path("my data")) == "droneseg data check 'my data'"


def test_data_adopt_is_a_hidden_alias_of_data_import() -> None:
    group = typer.main.get_command(app).commands["data"].commands
    assert group["adopt"].hidden
    assert group["adopt"].callback.__wrapped__ is group["import"].callback.__wrapped__


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pydantic", "PIL", "rich")
    script = f"import sys, droneseg.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_exits_1_with_problems_and_0_without(dataset: Path, tmp_path: Path) -> None:
    good = droneseg("data", "check", str(dataset), "--json", cwd=tmp_path)
    assert good.returncode == 0
    assert json.loads(good.stdout)["good_pairs"] == 4
    (dataset / KAGGLE_FOLDER / MASKS_FOLDER / "001.png").unlink()
    bad = droneseg("data", "check", str(dataset), cwd=tmp_path)
    assert bad.returncode == 1
    assert "problem: original_images/001.png: has no mask" in bad.stdout
    assert "3 valid pairs, 1 problem(s)" in bad.stdout


def test_an_expected_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    done = droneseg("data", "convert", "absent", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"error: {NOT_A_FOLDER}\n",
    )


def test_errors_are_json_with_json_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRONESEG_LOG_FORMAT", "json")
    done = droneseg("data", "convert", "absent", cwd=tmp_path)
    entry = json.loads(done.stderr)
    assert (done.returncode, entry["severity"], entry["message"]) == (
        1,
        "ERROR",
        NOT_A_FOLDER,
    )


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    assert droneseg("data", "sample", "x", "--size", "huge", cwd=tmp_path).returncode == 2
    assert droneseg("data", "split", "x", cwd=tmp_path).returncode == 2
    assert droneseg("nonsense", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_sample_split_stats_and_convert_work_together(tmp_path: Path) -> None:
    assert droneseg("data", "sample", "s", "--count", "4", "--size", "64x48", cwd=tmp_path).returncode == 0
    split = droneseg("data", "split", "s", "--out", "split.json", "--by", "random", cwd=tmp_path)
    assert "2 train, 1 val, 1 test (random)" in split.stdout
    assert droneseg("data", "split", "s", "--out", "split.json", cwd=tmp_path).returncode == 1
    stats = droneseg("data", "stats", "s", "--plot", "stats.png", "--json", cwd=tmp_path)
    assert json.loads(stats.stdout)["sizes"] == {"64x48": 4}
    with Image.open(tmp_path / "stats.png") as plot:
        assert plot.width > 500
    done = droneseg("data", "convert", "s", "--split", "split.json", cwd=tmp_path)
    assert "cases: 3 training, 1 test, 0 dropped" in done.stdout


def test_split_writes_folds_of_an_existing_split(tmp_path: Path) -> None:
    assert droneseg("data", "sample", "s", "--count", "6", "--size", "64x48", cwd=tmp_path).returncode == 0
    parts = {"train": ["000", "001", "002", "003"], "val": ["004"], "dropped": ["005"]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    words = ("data", "split", "s", "--of", "split.json", "--out", "folds.json")
    assert droneseg(*words, cwd=tmp_path).returncode == 2
    assert droneseg(*words, "--folds", "2", "--val-share", "0.2", cwd=tmp_path).returncode == 2
    random = droneseg(*words, "--folds", "2", "--by", "random", cwd=tmp_path)
    assert "fold 2: 2 train, 2 val" in random.stdout
    scenes = droneseg(*words, "--folds", "2", "--force", "--json", cwd=tmp_path)
    assert [fold["dropped"] for fold in json.loads(scenes.stdout)["folds"]] == [0, 0]
    written = json.loads((tmp_path / "folds.json").read_text())
    assert {name: written[name] for name in parts} == parts
    assert sorted(stem for fold in written["folds"] for stem in fold["val"]) == parts["train"]


def test_predict_without_a_model_names_the_remedy(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = droneseg("predict", "a.png", "--out", "masks", cwd=tmp_path)
    assert done.returncode == 1
    assert "No model at nnUNet_results" in done.stderr
    assert "Create one with `droneseg export`" in done.stderr
    assert not (tmp_path / "masks").exists()


def test_augment_writes_a_dataset_that_can_be_converted(tmp_path: Path) -> None:
    assert droneseg("data", "sample", "s", "--count", "3", "--size", "96x80", cwd=tmp_path).returncode == 0
    words = ("data", "augment", "s", "--out", "wet", "--water", "1", "--ground", "0", "--shadow", "1")
    done = droneseg(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wet: 3 original and 6 generated pairs (3 water, 0 ground, 3 shadow)" in done.stdout
    again = droneseg(*words, cwd=tmp_path)
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    shown = droneseg(*words, "--no-originals", "--force", "--json", cwd=tmp_path)
    assert (shown.returncode, json.loads(shown.stdout)["originals"]) == (0, 0)
    assert droneseg(*words, "--force", cwd=tmp_path).returncode == 0
    converted = droneseg("data", "convert", "wet", "--split", "wet/split.json", cwd=tmp_path)
    assert (converted.returncode, "9 training" in converted.stdout) == (0, True), converted.stderr


def test_train_without_data_names_the_remedy(tmp_path: Path) -> None:
    done = droneseg("train", "preset=smoke", "device=cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert "Run `droneseg preprocess` first" in done.stderr
    shown = droneseg("train", "--show", "preset=smoke", "epochs=3", cwd=tmp_path)
    assert json.loads(shown.stdout)["epochs"] == 3
    assert json.loads(shown.stdout).keys() <= {"tracking", *training_keys()}, "every key shown can be overridden"


def test_doctor_reports_versions_and_folders(tmp_path: Path) -> None:
    findings = json.loads(droneseg("doctor", "--json", cwd=tmp_path).stdout)
    assert findings["training device"] in ("cpu", "cuda", "mps")
    assert "run `droneseg data convert`" in findings["nnUNet_raw"]
    own = {"nnUNet_extTrainer": "/my/trainers"}
    without = json.loads(Workspace(tmp_path).run("doctor", "--json", **own).stdout)["nnUNet_extTrainer"]
    line = re.search(r"`export nnUNet_extTrainer=(/my/trainers:\S+)`", without)
    assert line, without
    there = Workspace(tmp_path).run("doctor", "--json", nnUNet_extTrainer=line[1]).stdout
    assert json.loads(there)["nnUNet_extTrainer"].startswith("set;")


def test_doctor_describes_the_model(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", format_version=1)
    findings = json.loads(Workspace(tmp_path).run("doctor", "--json", DRONESEG_MODEL="old").stdout)
    assert findings["model"].startswith(f"{old.model_id}, profile fast, ")
    assert findings["bundle format"] == "1"
    assert "images are not resampled" in findings["ground resolution"]
    assert "--data" in findings["unlike-training check"]
    options = ("--train-gsd", "0.02", "--train-gsd-range", "0.015", "0.03", "--train-gsd-source", "a tape measure")
    photographs = ("--data", str(make_photographs(tmp_path / "photographs", 20)))
    done = droneseg("models", "upgrade", "old", "--out", "new", *options, *photographs, cwd=tmp_path)
    assert "ground resolution: 0.02 m per pixel, 0.015 to 0.03 (a tape measure)" in done.stdout
    assert "photographs of photographs" in done.stdout
    findings = json.loads(Workspace(tmp_path).run("doctor", "--json", DRONESEG_MODEL="new").stdout)
    assert findings["bundle format"] == "2"
    assert findings["ground resolution"] == "0.02 m per pixel, 0.015 to 0.03 (a tape measure)"
    assert findings["unlike-training check"].startswith("present (20 images, photographs of photographs")
    assert "passed" in findings["self-check"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train-gsd", "0.02"), "requires --train-gsd-range and --train-gsd-source"),
        (("--train-gsd", "0.02", "--train-gsd-range", "0.03", "0.04", "--train-gsd-source", "x"), "must contain gsd_m"),
        (("--part", "val"), "--part requires --split"),
    ],
)
def test_upgrade_refuses_incomplete_options(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "old")
    done = droneseg("models", "upgrade", "old", "--out", "new", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fold", "1"), "fold 1 has no checkpoint_final.pth. Choose --fold from 0."),
        (("--checkpoint", "checkpoint_best.pth"), "no fold contains checkpoint_best.pth. Found checkpoint_final.pth"),
        (("--default-profile", "quick"), "'quick' cannot be the default profile; choose one of exact, fast."),
        (("--default-profile", "int8"), "The profile int8 needs --int8."),
    ],
)
def test_export_checks_its_options_before_it_imports_torch(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model/fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        (tmp_path / "model" / name).touch()
    monkeypatch.setitem(sys.modules, "droneseg.flows.export", None)  # importing it raises ImportError
    given = ["export", "--from", str(tmp_path / "model"), "--out", str(tmp_path / "bundle"), *options]
    assert words in str(CliRunner().invoke(app, given).exception)


def test_an_error_of_the_file_system_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = droneseg("data", "sample", "file/x", "--count", "1", "--size", "64x48", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: file")
    assert "Traceback" not in done.stderr


def test_a_plot_with_an_unknown_suffix_exits_2(dataset: Path, tmp_path: Path) -> None:
    done = droneseg("data", "stats", str(dataset), "--plot", "plot.xyz", cwd=tmp_path)
    assert done.returncode == 2
    assert ".png, .svg or .pdf" in done.stderr


def test_sigterm_removes_unfinished_output(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", "from droneseg.cli.main import main; main()", "data", "sample", "out", "--count", "999"],
        cwd=tmp_path, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    images = ".out.*.part/classes_dataset/classes_dataset/original_images/*.png"
    wait_until(lambda: list(tmp_path.glob(images)) or running.poll() is not None)
    running.terminate()
    assert running.wait(timeout=HANG_S) == 143
    assert list(tmp_path.iterdir()) == []


def test_predict_finds_the_images_of_a_dataset(dataset: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", patch=(64, 64))
    done = droneseg("predict", str(dataset), "--out", "masks", "--model", "bundle", cwd=tmp_path)
    assert "4 predicted" in done.stdout, done.stderr


def test_predict_groups_warnings_and_names_the_images_of_lowest_confidence(dataset: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", patch=(64, 64))
    words = ("predict", str(dataset), "--out", "masks", "--model", "bundle", "--overlay", "--json")
    results = json.loads(droneseg(*words, cwd=tmp_path).stdout)["results"]
    assert [warning["code"] for result in results for warning in result["warnings"]] == ["unknown_scale"] * 4
    assert all(result["ground"]["gsd_m"] is None for result in results)
    again = droneseg(*words[:-1], cwd=tmp_path)
    assert [line for line in again.stderr.splitlines() if line.startswith("warning: ")] == [
        f"warning: 4 images: {results[0]['warnings'][0]['message'][:-1]} (--gsd, --height)."
    ]
    worst = min(results, key=lambda result: result["confidence"])
    lines = again.stdout.splitlines()
    assert lines[0].startswith("masks: 4 skipped (model ")
    assert lines[1].startswith(f"lowest confidence: {Path(worst['source']).name} {worst['confidence']:.1%}, ")
    assert lines[1].count("%") == 3
    assert lines[2:] == ["overlays: masks/*_overlay.png"]


def test_predict_takes_the_ground_resolution_from_its_option(dataset: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", patch=(64, 64))
    words = ("predict", str(dataset), "--out", "masks", "--model", "bundle", "--json")
    done = droneseg(*words, "--gsd", "0.02", cwd=tmp_path)
    results = json.loads(done.stdout)["results"]
    assert [(r["ground"]["gsd_m"], r["ground"]["source"]) for r in results] == [(0.02, "argument")] * 4
    wrong = droneseg(*words, "--gsd", "0.02", "--height", "40", cwd=tmp_path)
    assert (wrong.returncode, "Pass one of them" in wrong.stderr) == (2, True)
    assert droneseg(*words, "--height", "0", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("yaml", ("models", "pull"), "store"),
        ("networkx", ("data", "split", "missing", "--out", "split.json"), "train"),
        ("fastapi", ("serve",), "serve"),
    ],
)
def test_a_missing_module_is_reported_with_its_extra(
    tmp_path: Path, missing: str, words: tuple[str, ...], extra: str
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from droneseg.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"{missing} is not installed. In the clone: uv sync --extra {extra}" in done.stderr


def test_a_missing_module_without_an_extra_is_a_traceback(tmp_path: Path) -> None:
    code = "import sys; sys.modules['droneseg.cli.console'] = None; from droneseg.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_models_show_says_that_the_quality_was_not_measured(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    shown = CliRunner().invoke(app, ["models", "show", str(tmp_path / "bundle")], terminal_width=200)
    assert shown.exit_code == 0, shown.output
    assert "quality: not measured: no photographs that the model was not trained on" in shown.output
    assert "classes: background, obstacles (obstacle), water (water)" in shown.output
    as_json = CliRunner().invoke(app, ["models", "show", str(tmp_path / "bundle"), "--json"])
    assert json.loads(as_json.output)["description"] == "looks at colours"
