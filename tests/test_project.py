"""Rules for the repository: file names, docstrings, output, versions, data."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_no_file_name_is_used_twice() -> None:
    names = Counter(p.name for p in SOURCES if p.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_class_colours_are_defined_once() -> None:
    stated = [p.name for p in SOURCES if re.search(r"155, ?38, ?182|14, ?135, ?204", p.read_text())]
    assert stated == ["classes.py"]


def test_every_module_has_a_docstring() -> None:
    assert [p.name for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_source_never_calls_print() -> None:
    calls = [
        p.name for p in SOURCES for node in ast.walk(ast.parse(p.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]  # fmt: skip
    assert calls == []


def test_ci_runs_the_readme_test_command() -> None:
    assert "\npip install uv && uv run pytest" in (ROOT / "README.md").read_text()
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_bentofile_names_the_wheel_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"wheels: [dist/droneseg-{version}-py3-none-any.whl]" in (ROOT / "bentofile.yaml").read_text()


def test_links_in_the_readme_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_repository_contains_no_real_data() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pictures = [f for f in listed.stdout.split() if f.lower().endswith((".jpg", ".jpeg", ".png", ".tif", ".bmp"))]
    allowed = [f"docs/{name}.png" for name in ("augment", "benchmark", "drift", "overlay", "page", "sweep", "training")]
    assert pictures == allowed, "plots, and generated scenes"
