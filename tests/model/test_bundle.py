"""Bundles are read only if every file verifies; each kind of damage has its own message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.errors import BundleError
from droneseg.model.bundle import class_entries, read_bundle
from support.bundles import CONTEXT, make_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle").folder


def test_complete_bundle_is_read(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.manifest.default_profile == "fast"
    assert bundle.network("exact").is_file()
    assert len(bundle.model_id) == 12


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped byte": (flip_a_byte, r"model.onnx is corrupt: its SHA-256 does not match the manifest"),
    "missing file": (lambda f: (f / "model.onnx").unlink(), "model.onnx is missing; the bundle is incomplete"),
    "cut short": (lambda f: (f / "model.onnx").write_bytes(b"x"), "model.onnx has 1 bytes instead of"),
    "a class twice": (
        lambda f: edit(f, lambda m: m["classes"][2].update(name="obstacles")),
        "malformed:\n  - manifest: .*the name obstacles occurs more than once",
    ),
    "ids with a gap": (lambda f: edit(f, lambda m: m["classes"].pop(2)), "no class has the id 2; ids are the numbers"),
    "unknown role": (
        lambda f: edit(f, lambda m: m["classes"][2].update(role="lava")), "malformed:\n  - classes.2.role: ",
    ),
    "unknown region class": (
        lambda f: edit(f, lambda m: m.update(context=CONTEXT.model_dump() | {"region_classes": ["water", "lava"]})),
        "region_classes has unknown classes: lava",
    ),
    "newer format": (
        lambda f: edit(f, lambda m: m.update(format_version=3)),
        "bundle format 3; this version of droneseg reads 1 and 2. Update droneseg",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a model bundle: manifest.json is missing"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not JSON"),
    "no object": (lambda f: (f / "manifest.json").write_text("[]"), "is not the manifest of a bundle"),
    "missing key": (lambda f: edit(f, lambda m: m.pop("patch_size")), "malformed:\n  - patch_size: Field required"),
    "unknown profile": (
        lambda f: edit(f, lambda m: m.update(default_profile="turbo")), "default profile 'turbo' is not one of",
    ),
    "no format": (lambda f: edit(f, lambda m: m.pop("format_version")), "is not the manifest of a bundle"),
    "no patch": (lambda f: edit(f, lambda m: m.update(patch_size=[0, 0])), "it must be a multiple of divisor"),
    "huge patch": (lambda f: edit(f, lambda m: m.update(patch_size=[10**6] * 2)), "it must be a multiple of divisor"),
    "odd divisor": (lambda f: edit(f, lambda m: m.update(divisor=[7, 7])), "it must be a multiple of divisor"),
    "listed file outside": (
        lambda f: edit(f, lambda m: m["files"].update({"../x": m["files"]["model.onnx"]})), "malformed:\n  - files",
    ),
    "unlisted network": (
        lambda f: edit(f, lambda m: m["profiles"]["fast"].update(network="other.onnx")),
        "files has no entry for other.onnx",
    ),
    "nnU-Net's logits with a gap": (
        lambda f: edit(f, lambda m: m["profiles"]["exact"].update(nnunet_logits={"folds": 1, "class_ids": [0, 2]})),
        "every number from 0 to the largest must occur",
    ),
    "nnU-Net's logits of other classes": (
        lambda f: edit(f, lambda m: m["profiles"]["exact"].update(nnunet_logits={"folds": 1, "class_ids": [0, 1]})),
        "class_ids of profile exact must be those of the 6 classes",
    ),
    "nnU-Net's logits in another profile": (
        lambda f: edit(f, lambda m: m["profiles"]["fast"].update(nnunet_logits={"folds": 1, "class_ids": [0, 1]})),
        "nnunet_logits need half_sums",
    ),
    "file outside": (
        lambda f: edit(f, lambda m: m["profiles"]["fast"].update(network="../model.onnx")), "should match pattern",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_bundle_is_rejected(folder: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(BundleError, match=f"(?s){message}"):
        read_bundle(folder)


def test_a_bundle_has_its_own_classes(tmp_path: Path) -> None:
    own = ClassTable(
        (
            SegmentationClass(0, "other", (0, 0, 0)),
            SegmentationClass(1, "runway", (90, 90, 90), Role.LANDING),
            SegmentationClass(2, "sea", (0, 0, 255), Role.WATER),
        )
    )
    bundle = make_bundle(tmp_path / "own", classes=own)
    assert read_bundle(bundle.folder).manifest.class_table == own
    renamed = bundle.manifest.model_copy(update={"classes": class_entries(DEFAULT_CLASSES)})
    assert renamed.class_table == DEFAULT_CLASSES


def test_default_classes_without_roles_get_theirs(folder: Path) -> None:
    edit(folder, lambda m: [entry.pop("role") for entry in m["classes"]])
    assert read_bundle(folder).manifest.class_table == DEFAULT_CLASSES
    edit(folder, lambda m: m["classes"][2].update(name="lava"))
    others = read_bundle(folder).manifest.class_table
    assert others.names[2] == "lava"
    assert not any(entry.role for entry in others)


def test_path_of_a_file_is_rejected_with_its_folder(folder: Path) -> None:
    with pytest.raises(BundleError, match="is a file; a model bundle is a folder"):
        read_bundle(folder / "model.onnx")


def test_training_folder_is_rejected_with_the_export_command(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(BundleError, match="is a training folder of nnU-Net, not a bundle"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"No model at .*absent\. Create one with `droneseg export`"):
        read_bundle(tmp_path / "absent")


def test_model_id_changes_with_the_content(folder: Path, tmp_path: Path) -> None:
    before = read_bundle(folder).model_id
    edit(folder, lambda m: m.update(license="another"))
    assert read_bundle(folder).model_id != before


def test_failed_write_keeps_the_existing_bundle(folder: Path, tmp_path: Path) -> None:
    before = read_bundle(folder).model_id
    with pytest.raises(FileNotFoundError):
        make_bundle(folder, network=tmp_path / "absent.onnx")
    assert read_bundle(folder).model_id == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bundle", "network.onnx"]


def test_missing_relative_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="No model at nope"):
        read_bundle(Path("nope"))
