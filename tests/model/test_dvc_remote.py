"""The remote in the repository contains models and nothing else."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.model import bundle
from droneseg.model.dvc_remote import read_meta

ROOT = Path(__file__).parents[2]
REMOTE = ROOT / "dvc-remote" / "files" / "md5"
MOST_BYTES = 30 * 1024 * 1024
ALLOWED = {
    f"champion/{name}"
    for name in (
        bundle.MANIFEST_NAME,
        bundle.NETWORK_NAME,
        bundle.INT8_NETWORK_NAME,
        bundle.TWIN_NETWORK_NAME,
        bundle.REFERENCE_NAME,
        bundle.SELF_CHECK_IMAGE_NAME,
        bundle.SELF_CHECK_EXPECTED_NAME,
    )
}


CHECKPOINT_FILES = {"dataset.json", "plans.json", "fold_0/checkpoint_final.pth"}
"""Files of the model folder that the included model was exported from."""


def blob(md5: str) -> Path:
    return REMOTE / md5[:2] / md5[2:]


def listings() -> list[Path]:
    return sorted(REMOTE.rglob("*.dir"))


def read_pointer(path: str) -> dict[str, str]:
    """Return the md5 of each file of a tracked folder by path."""
    pointer = yaml.safe_load((ROOT / f"{path}.dvc").read_text())
    (out,) = pointer["outs"]
    assert out["path"] == path
    return {entry["relpath"]: entry["md5"] for entry in json.loads(blob(out["md5"]).read_bytes())}


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """Return the md5 of each file of the tracked model by path."""
    return read_pointer("nnUNet_results")


def test_repository_remote_is_the_default() -> None:
    config = (ROOT / ".dvc/config").read_text()
    assert re.search(r"^\s*remote = models$", config, re.M)
    assert re.search(r"^\['remote \"models\"'\]\n\s*url = \.\./dvc-remote$", config, re.M)
    assert re.search(r"^\s*verify = true$", config, re.M)  # otherwise DVC does not verify downloads
    assert re.search(r"^\s*analytics = false$", config, re.M)


def test_repository_remote_contains_only_intact_files_of_models() -> None:
    known: set[Path] = set(listings())
    assert known
    for listing in listings():
        entries = json.loads(listing.read_bytes())
        paths = {entry["relpath"] for entry in entries}
        assert paths <= ALLOWED or paths == CHECKPOINT_FILES
        files = [blob(entry["md5"]) for entry in entries]
        assert sum(file.stat().st_size for file in files) <= MOST_BYTES
        known |= set(files)
    assert {file for file in REMOTE.rglob("*") if file.is_file()} == known
    for file in known:
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        assert digest == (file.parent.name + file.name).removesuffix(".dir")


def test_tracked_model_is_a_complete_bundle_with_its_licence(tracked: dict[str, str]) -> None:
    manifest = bundle.Manifest.model_validate_json(blob(tracked[f"champion/{bundle.MANIFEST_NAME}"]).read_bytes())
    for name, record in manifest.files.items():
        content = blob(tracked[f"champion/{name}"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == record.sha256
    assert "non-commercial" in manifest.license.lower()
    assert "dronedataset.icg.tugraz.at" in manifest.license
    assert manifest.quality is not None
    assert manifest.quality["images"] == 45
    assert manifest.drift_reference is not None
    assert manifest.drift_reference.images == 45


def test_training_folders_are_not_tracked(tracked: dict[str, str]) -> None:
    lines = (ROOT / ".dvcignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["nnUNet_results/*", "!nnUNet_results/champion"]
    assert set(tracked) <= ALLOWED


def test_model_folder_of_the_included_model_contains_no_names_of_photographs() -> None:
    tracked = read_pointer("nnunet-model")
    assert set(tracked) == CHECKPOINT_FILES
    dataset = json.loads(blob(tracked["dataset.json"]).read_bytes())
    assert set(dataset["labels"]) == {entry.name for entry in DEFAULT_CLASSES}
    assert not {"gsd_m", "generated"} & set(dataset["droneseg"])


def test_checkpoint_is_that_of_the_included_model_and_runs_no_code(tracked: dict[str, str]) -> None:
    from droneseg.nnunet.checkpoint import read_checkpoint

    meta = read_meta(ROOT / "nnunet-model.dvc")
    manifest = blob(tracked[f"champion/{bundle.MANIFEST_NAME}"]).read_bytes()
    assert meta["model_id"] == bundle.model_id_of(manifest)
    assert meta["license"] == json.loads(manifest)["license"]
    checkpoint = read_checkpoint(blob(read_pointer("nnunet-model")["fold_0/checkpoint_final.pth"]))
    assert checkpoint["optimizer_state"] is None
    assert not {"gsd_m", "generated"} & set(checkpoint["init_args"]["dataset_json"]["droneseg"])
