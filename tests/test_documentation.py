"""Comparison of the built documentation with the code, in both directions."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from droneseg.core.camera import WarningCode
from droneseg.core.class_files import CLASSES_NAME, find_classes
from droneseg.core.classes import DEFAULT_CLASSES, Role, SegmentationClass
from droneseg.core.images import encode_png
from droneseg.core.masks import read_mask
from droneseg.core.settings import Settings, variable_names
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.app import create_app
from droneseg.serving.error_responses import ERROR_SPECS, INTERNAL_ERROR, status_code_name
from droneseg.training.config import preset_names, training_keys
from support.bundles import make_bundle
from support.documentation import (
    ROOT,
    Command,
    Page,
    command_lines,
    droneseg_commands,
    invoke_tasks,
    read_site,
    templates,
)
from support.workspace import Workspace

GENERATED = ("reference/cli", "reference/settings", "reference/training", "benchmarks")
WITH_KEYS = {("train",), ("sweep",), ("benchmark",)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    quiet = {"DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return read_site(site)


def wrong_words(words: list[str], command: Command, *, with_keys: bool) -> list[str]:
    """Return the options and keys in a command line that the command does not accept."""
    keys = {*training_keys(), "preset", "tracking"}
    wrong = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("["):
            continue
        if word.startswith("-") and name not in command.options and not re.fullmatch(r"-\d.*|-", word):
            wrong.append(word)
        elif with_keys and equals and not word.startswith("-"):
            good = value in preset_names() or "|" in value or value == "..." if name == "preset" else name in keys
            wrong += [] if good else [word]
    return wrong


def test_documented_commands_options_and_keys_exist(pages: dict[str, Page]) -> None:
    ours, tasks = droneseg_commands(), invoke_tasks()
    wrong, seen = [], set()
    for page in pages.values():
        for program, *words in command_lines(page):
            if program == "invoke":
                names = words[0].split("|") if words else []
                for name in names:
                    if name.startswith("-") or name in ("...", "NAME"):
                        continue
                    task = tasks.get(name)
                    missing = [name] if task is None else wrong_words(words[1:], task, with_keys=False)
                    wrong += [f"{page.name}: invoke {name}: {word}" for word in missing]
                continue
            path: tuple[str, ...] = ()
            while words and (*path, words[0]) in ours:
                path = (*path, words.pop(0))
            group = any(other[:-1] == path for other in ours if other)
            if group and words and not words[0].startswith("-") and not set("|.[") & set(words[0]):
                wrong.append(f"{page.name}: droneseg {' '.join((*path, words[0]))}")
            if page.name not in GENERATED:
                seen.add(path)
            wrong += [
                f"{page.name}: droneseg {' '.join(path)} {word}"
                for word in wrong_words(words, ours[path], with_keys=path in WITH_KEYS)
            ]
    assert wrong == []
    leaves = {path for path in ours if not any(other[: len(path)] == path and other != path for other in ours)}
    assert leaves - seen == set(), "commands that no guide shows"


def test_options_quoted_without_a_command_exist(pages: dict[str, Page]) -> None:
    commands = (*droneseg_commands().values(), *invoke_tasks().values())
    options = {name for command in commands for name in command.options}
    foreign = {"--gpus", "--build-arg", "--port", "--timeout-graceful-shutdown"}
    named = {
        text.split()[0].partition("=")[0] for page in pages.values() for text in page.inline if text.startswith("--")
    }
    assert len(named) > 15
    assert named - options - foreign == set()


def test_documented_settings_are_all_settings(pages: dict[str, Page]) -> None:
    known = set(variable_names())
    of_tests = {"DRONESEG_TEST_DATA", "DRONESEG_REQUIRE_ALL", "DRONESEG_BEARER"}
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert all(name in sources for name in of_tests)
    named = {name for page in pages.values() for name in re.findall(r"\bDRONESEG_[A-Z][A-Z_]*[A-Z]\b", page.text)}
    assert named - known - of_tests == set()
    listed = {row[0].get_text() for table in pages["reference/settings"].tables() for row in table}
    assert listed == known


def test_training_reference_lists_every_key(pages: dict[str, Page]) -> None:
    listed = {row[0].get_text() for table in pages["reference/training"].tables() for row in table}
    assert listed == set(training_keys())
    assert all(training_keys().values()), "each says what it means"


def test_cli_reference_lists_every_command_and_option(pages: dict[str, Page]) -> None:
    text = pages["reference/cli"].text
    for path, command in droneseg_commands().items():
        assert " ".join(("droneseg", *path)) in text
        for option in command.options - {"-h", "--show-completion"}:
            assert option in text, (path, option)


def bento_paths() -> set[str]:
    """Return the paths of the BentoML service, read in a new process because importing BentoML warns."""
    script = (
        "import json; from droneseg.serving import bentoml_service as b; "
        "print(json.dumps([*b.PUBLIC_PATHS, b.PREDICT_BASE64, b.PREDICT_BYTES, b.MODEL_INFO, b.METRICS]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def paths_of(pages: dict[str, Page], port: int) -> set[str]:
    """Return the paths in URLs with a port and those quoted after an HTTP method."""
    paths = set()
    for page in pages.values():
        for text in (*page.blocks, *page.inline):
            paths |= set(re.findall(rf"127\.0\.0\.1:{port}(/[a-z0-9_/]+)", text))
            paths |= set(re.findall(r"\b(?:GET|POST)[`, A-Z]* (/[a-z0-9_/.]*)", text))
    return paths


def test_documented_endpoints_are_all_endpoints(pages: dict[str, Page]) -> None:
    app = create_app(Settings(api_key="a key for tests"))
    fastapi = set(app.openapi()["paths"]) | {"/ui", "/docs", "/openapi.json"}
    backend = bento_paths()
    named = paths_of(pages, 8000)
    assert len(named) > 8
    assert named - fastapi - backend - {"/"} == set()
    assert paths_of({"bento": pages["bento"]}, 3000) - backend - fastapi == set()
    for page, paths in (("serving", fastapi), ("bento", backend)):
        text = " ".join((*pages[page].inline, *pages[page].blocks))
        assert [path for path in sorted(paths) if path not in text] == []


def test_documented_metrics_and_labels_are_all_metrics(pages: dict[str, Page]) -> None:
    collectors = ServiceMetrics()._registry._collector_to_names.items()
    labels = {name: set(getattr(collector, "_labelnames", ())) for collector, names in collectors for name in names}
    ours = {name for name in labels if name.startswith("droneseg_")}
    for page in pages.values():
        for name, _, inside in re.findall(
            r"\b(droneseg_[a-z_]+)(\{([^}]*)\})?", " ".join((*page.inline, *page.blocks))
        ):
            if page.name.startswith("extend"):
                continue  # of its examples
            assert name in ours, (page.name, name)
            stated = {label.partition("=")[0].strip() for label in inside.split(",") if label}
            assert stated <= labels[name], (page.name, name)
    documented = {
        name: {label for label in inside.split(",") if label}
        for text in pages["serving"].inline
        for name, inside in re.findall(r"^(droneseg_[a-z_]+)(?:\{([^}]*)\})?$", text)
    }
    families = [names for _, names in collectors if any(name.startswith("droneseg_") for name in names)]
    for names in families:
        shown = [name for name in names if name in documented]
        assert shown, names
        assert documented[shown[0]] == labels[shown[0]], shown


def test_documented_statuses_and_codes_are_all_errors(pages: dict[str, Page]) -> None:
    ours = {(spec.status, spec.code) for spec in (*ERROR_SPECS.values(), INTERNAL_ERROR)}
    documented = set()
    for table in pages["serving"].tables():
        for status, *cells in table:
            if re.fullmatch(r"\d{3}(, \d{3})*", status.get_text()):
                statuses = [int(number) for number in status.get_text().split(", ")]
                codes = [code.get_text() for code in cells[0].select("code")]
                pairs = (
                    zip(statuses, codes, strict=True) if len(statuses) > 1 else ((statuses[0], code) for code in codes)
                )
                documented |= set(pairs)
    assert ours - documented == set()
    for status, code in documented - ours:
        assert code == status_code_name(status)


def test_documented_warnings_are_all_warnings(pages: dict[str, Page]) -> None:
    tables = [[row[0].get_text() for row in table] for table in pages["predict"].tables()]
    (documented,) = [table for table in tables if WarningCode.UNKNOWN_SCALE in table]
    assert sorted(documented) == sorted(WarningCode)


def test_troubleshooting_quotes_messages_of_the_source(pages: dict[str, Page]) -> None:
    texts = templates()
    paragraphs = [item.find("p", recursive=False) for item in pages["troubleshooting"].content.select("li")]
    codes = [paragraph.find("code") for paragraph in paragraphs if paragraph]
    messages = [code.get_text() for code in codes if code and code.parent.get_text() == code.get_text()]
    assert len(messages) > 35
    for message in messages:
        parts = [re.escape(part) for part in message.split("...")]
        assert sum(len(part) for part in message.split("...")) > 12, message
        pattern = re.compile("[^\n]*?".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def test_page_for_users_of_nnunet_quotes_refusals_of_the_source(pages: dict[str, Page]) -> None:
    texts = templates()
    *_, refusals = pages["nnunet"].tables()
    messages = [row[0].get_text() for row in refusals]
    assert len(messages) > 10
    for message in messages:
        # a message may be put together from several texts, each at least one sentence
        pattern = re.compile("[^\n]*?".join(re.escape(part) for part in message.split("...")))
        sentences = [part.strip() for part in re.split(r"\.\.\.|(?<=[.:])\s", message) if len(part.strip()) > 12]
        whole = any(pattern.search(text) for text in texts)
        assert whole or all(any(part in text for text in texts) for part in sentences), message


def test_documented_files_exist(pages: dict[str, Page]) -> None:
    """Only files of the repository are checked, not those that commands write."""
    inside = re.compile(r"^(?:src|docs|tests|benchmarks|configs|deploy|\.github|\.ci)/[\w./-]*\w$")
    short = re.compile(r"^(?:core|data|serving|monitoring|inference|model|nnunet|training)/[\w./]+\.py$")
    for page in pages.values():
        for text in page.inline:
            if inside.match(text) and "NAME" not in text:
                assert (ROOT / text).exists(), (page.name, text)
            if short.match(text):
                assert (ROOT / "src/droneseg" / text).exists(), (page.name, text)


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loaded = 0
    for file in site.rglob("*.html"):
        soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        for tag in soup.select("script[src], img[src], link[href], iframe[src]"):
            if "canonical" not in tag.get("rel", []):
                loaded += 1
                assert not str(tag.get("src") or tag.get("href")).startswith(("http:", "https:", "//")), (file, tag)
    assert loaded > 100
    drawn = [file.name for file in site.rglob("*.html") if 'class="mermaid"' in file.read_text(encoding="utf-8")]
    assert drawn == ["architecture.html"]
    assert "mermaid.tiny.js" in (site / "architecture.html").read_text(encoding="utf-8"), (
        "or the theme loads it from a CDN"
    )


class Silent(SimpleHTTPRequestHandler):
    """File server without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def test_links_within_the_site_work(url: str) -> None:
    command = [
        str(Path(sys.executable).with_name("linkchecker")),
        "--no-status",
        "--no-warnings",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    checked = re.search(r"That's it\. (\d+) links", done.stdout)
    assert checked, done.stdout
    assert int(checked[1]) > 80


EXAMPLES = {
    "endpoint": """
from fastapi.testclient import TestClient
from droneseg.core.settings import Settings
from droneseg.serving.app import create_app
assert TestClient(create_app(Settings())).get("/colours").json()[5]["name"] == "landing-zones"
""",
    "metric": """
from droneseg.monitoring.prometheus import ServiceMetrics
assert b"droneseg_without_landing_total 0" in ServiceMetrics().render("")[0]
""",
    "layout": """
from pathlib import Path
from droneseg.data.dataset import find_dataset
for name in ("train", "train_labels"):
    Path(name).mkdir()
assert find_dataset(Path()).masks.name == "train_labels"
""",
}


# what all of their kind must do
OWN_TESTS = {
    "runtime": ("tests/inference/test_segmenter.py", "opencv"),
    "backend": ("tests/serving/test_server.py", "plain"),
}


def apply(name: str, folder: Path) -> dict[str, str]:
    """Copy the project, apply a worked example and return environment variables that import the copy."""
    for part in ("src", "tests", "configs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    patch = ROOT / "docs/examples" / f"{name}.patch"
    applied = subprocess.run(["git", "apply", str(patch)], cwd=folder, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    return {**os.environ, "PYTHONPATH": str(folder / "src")}


def test_worked_examples_are_all_documented_and_tested() -> None:
    documented = set(
        re.findall(r"docs/examples/([a-z]+)\.patch", (ROOT / "docs/extend.md").read_text(encoding="utf-8"))
    )
    existing = {file.stem for file in (ROOT / "docs/examples").iterdir() if file.name != CLASSES_NAME}
    assert documented == existing == {*EXAMPLES, *OWN_TESTS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_example_applies_and_works(tmp_path: Path, name: str) -> None:
    environment = apply(name, tmp_path)
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", EXAMPLES[name]]
    before = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert before.returncode, "it asks for something that was there before"
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_class_is_added_without_code(tmp_path: Path) -> None:
    """The commands of the page work up to the conversion; a training would take minutes."""
    text = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "classes.csv DATA" in block)
    copy, *commands = (line.split() for line in block.splitlines())
    workspace, folder = Workspace(tmp_path), tmp_path / "DATA"
    workspace.run("data", "sample", "DATA", "--count", "6", "--size", "64x48")
    shutil.copy(ROOT / copy[1], next(folder.rglob("label_images_semantic")).parent)
    for file in folder.rglob("label_images_semantic/*.png"):
        mask = np.array(Image.open(file).convert("RGB"))
        mask[:6, :10] = (107, 142, 35)
        Image.fromarray(mask).save(file)
    for program, *words in commands:
        assert program == "droneseg"
        if words[0] == "data":
            workspace.run(*words, *(("--by", "random") if "split" in words[1] else ()))
    raw = tmp_path / "nnUNet_raw/Dataset101_DroneSeg"
    labels = [np.array(Image.open(file)) for file in (raw / "labelsTr").iterdir()]
    assert labels
    assert {(label == 6).sum() for label in labels} == {60}
    assert find_classes(raw).classes[6] == SegmentationClass(6, "trees", (107, 142, 35), Role.OBSTACLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_TESTS)
def test_worked_example_passes_the_tests_of_its_kind(tmp_path: Path, name: str) -> None:
    module, chosen = OWN_TESTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module, "-k", chosen]
    done = subprocess.run(command, cwd=tmp_path, env=apply(name, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10  # type: ignore[index]  # it says so


PYTHON_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def python_examples() -> list[tuple[str, str]]:
    """Return the page and the code of each Python example that calls `droneseg.load`."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        (page.name, code) for page in pages for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    return [(name, code) for name, code in blocks if "droneseg.load" in code]


def test_guide_to_python_has_examples() -> None:
    assert Counter(name for name, _ in python_examples()) == {"README.md": 1, "install.md": 1, "python.md": 8}


@pytest.mark.parametrize(("page", "code"), python_examples())
def test_python_example_runs(tmp_path: Path, page: str, code: str) -> None:
    (tmp_path / "nnUNet_results").mkdir()
    make_bundle(tmp_path / "nnUNet_results/champion", patch=(64, 64))
    image = np.zeros((50, 70, 3), np.uint8) + np.arange(0, 210, 3, np.uint8)[:, None]
    (tmp_path / "photos").mkdir()
    for name in ("PHOTO.png", "photos/001.png"):
        (tmp_path / name).write_bytes(encode_png(image))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout
    masks = [file for file in (tmp_path / "mask.png", tmp_path / "masks/001.png") if file.exists()]
    assert done.stdout or masks, "an example shows something"
    assert [read_mask(file, "ids", DEFAULT_CLASSES).shape for file in masks] == [(50, 70)] * len(masks)


def test_installation_page_lists_every_extra() -> None:
    stated = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == stated


@pytest.mark.slow
def test_readme_training_commands_run_as_written(tmp_path: Path) -> None:
    """The training is shorter and its network smaller."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "data check DIR" in block)
    workspace = Workspace(tmp_path)
    workspace.run("data", "sample", "DIR", "--count", "20", "--size", "192x160", "--seed", "3")
    lines = [line.partition("#")[0].split() for line in block.splitlines() if line.strip()]
    assert len(lines) == 8
    for uv, run, program, *words in lines:
        assert (uv, run, program) == ("uv", "run", "droneseg")
        if words[0] == "train":
            words = ["train", "preset=smoke", "epochs=1", "iterations=4"]
        workspace.run(*words)
    tested = json.loads((tmp_path / "split.json").read_text())["test"]
    assert len(list((tmp_path / "masks").glob("*_overlay.png"))) == len(tested) > 0
