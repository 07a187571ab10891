"""Tests of promotion and rollback."""

import itertools
import json
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable
from droneseg.core.errors import BundleError, DronesegError, OutputExistsError, PromotionRefusedError, StoreError
from droneseg.core.settings import Settings
from droneseg.flows.promote import EvaluationSpec, compare_models, promote_model, roll_back
from droneseg.flows.upgrade import add_blocks
from droneseg.inference.batch import DEFAULT_VIEW, ViewOptions
from droneseg.model.bundle import TrainingGround, model_id_of, read_bundle
from droneseg.model.dvc_remote import DvcOutput, read_dvc_file
from droneseg.model.registry import (
    RegisteredModel,
    RegistryEntry,
    champion_lineage,
    known_ids,
    list_models,
    read_registry,
)
from droneseg.model.store import pull_model
from support.bundles import make_bundle
from support.projects import GOOD, POOR, UNSAFE, WORSE, dvc, git, make_model, make_photographs, make_project
from support.raw_datasets import make_raw_dataset
from support.workspace import Workspace

ROOT = Path(__file__).parents[2]
GROUND = TrainingGround(gsd_m=0.02, gsd_range_m=(0.015, 0.03), source="a tape measure")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "project"
    make_project(folder)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


@pytest.fixture
def settings(project: Path) -> Settings:
    return Settings(model=project / "nnUNet_results/champion", cache_dir=project.parent / "compiled")


@pytest.fixture
def spec(photographs: Path, tmp_path: Path) -> EvaluationSpec:
    return EvaluationSpec(photographs, None, "val", tmp_path / "comparison")


def promote(candidate: Path, spec: EvaluationSpec, settings: Settings, force: str | None = None) -> RegistryEntry:
    return promote_model(candidate, spec, settings=settings, force=force, progress=lambda *_: None)


def state(project: Path) -> tuple[str, str, str, str]:
    """Return the champion's id, its `.dvc` file, the git log and the git status."""
    champion = read_bundle(project / "nnUNet_results/champion").model_id
    return (
        champion,
        (project / "nnUNet_results.dvc").read_text(),
        git(project, "log", "--oneline"),
        git(project, "status", "--porcelain"),
    )


def test_a_better_candidate_becomes_the_champion_and_is_committed(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    before = read_bundle(settings.model).model_id
    better = make_model(tmp_path / "better", GOOD)
    entry = promote(better.folder, spec, settings)
    assert read_bundle(settings.model).model_id == better.model_id == entry.model.model_id
    assert entry.previous is not None
    assert entry.previous.model_id == before
    assert entry.who == "A Pilot <pilot@example.org>"
    assert entry.figures is not None
    previous, promoted = entry.figures.figures
    assert promoted["miou"].value == 1
    assert previous["miou"].value < 0.7
    assert entry.figures.differences["miou"].low > 0
    assert git(project, "status", "--porcelain") == ""
    subject, empty, reason, *_ = git(project, "log", "-1", "--format=%B").split("\n")
    assert subject == f"Promote model {better.model_id}"
    assert (empty, reason) == ("", "better with 95 % confidence, and not less safe")
    changed = git(project, "show", "--name-only", "--format=").split("\n")
    assert changed == ["model-registry.jsonl", "nnUNet_results.dvc"]
    assert read_registry(project) == [entry]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (WORSE, "its mIoU is lower: -"),
        (POOR, "its mIoU is not significantly higher: "),
        (UNSAFE, "its unsafe landing rate is higher: "),
    ],
    ids=["worse", "equal", "unsafe"],
)
def test_a_candidate_that_is_not_better_is_refused_and_nothing_changes(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path, network: object, reason: str
) -> None:
    before = state(project)
    candidate = make_model(tmp_path / "candidate", network, patch=(32, 24)).folder
    with pytest.raises(PromotionRefusedError) as refused:
        promote(candidate, spec, settings)
    assert reason in str(refused.value)
    assert "--force REASON" in str(refused.value)
    assert (spec.report / "report.md").is_file()
    assert state(project) == before


def test_the_champion_itself_is_refused(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    copy = shutil.copytree(settings.model, tmp_path / "copy")
    with pytest.raises(PromotionRefusedError, match="is already the champion"):
        promote(Path(copy), spec, settings)


def test_other_classes_and_damaged_bundles_are_refused(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    before = state(project)
    other, damaged = (make_model(tmp_path / name, GOOD).folder for name in ("other", "damaged"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"][5]["name"] = "runways"
    (other / "manifest.json").write_text(json.dumps(manifest))
    (damaged / "model.onnx").write_bytes((damaged / "model.onnx").read_bytes()[:-1])
    with pytest.raises(PromotionRefusedError, match="has other classes, so the two cannot be compared"):
        promote(other, spec, settings)
    with pytest.raises(BundleError, match=r"model\.onnx has .* bytes instead of"):
        promote(damaged, spec, settings)
    assert state(project) == before


@pytest.mark.parametrize("there", [True, False], ids=["here", "not-pulled"])
def test_a_champion_with_other_classes_is_replaced_only_by_force(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path, *, there: bool
) -> None:
    manifest = settings.model / "manifest.json"
    manifest.write_text(manifest.read_text().replace("landing-zones", "runways"))
    dvc(project, "add", "--quiet", "nnUNet_results")
    dvc(project, "push", "--quiet", "nnUNet_results.dvc")
    git(project, "commit", "--quiet", "--all", "--message", "before the class was renamed")
    older = model_id_of(manifest.read_bytes())
    if not there:
        shutil.rmtree(project / "nnUNet_results")
        shutil.rmtree(project / ".dvc/cache")
    candidate = make_model(tmp_path / "candidate", GOOD)
    with pytest.raises(PromotionRefusedError, match="has other classes, so the two cannot be compared"):
        promote(candidate.folder, spec, settings)
    entry = promote(candidate.folder, spec, settings, "a class has another name")
    assert read_bundle(settings.model).model_id == entry.model.model_id == candidate.model_id
    assert entry.previous is not None
    assert entry.previous.model_id == older
    roll_back(settings, "")
    assert read_bundle(settings.model).model_id == older


def test_a_comparison_on_too_few_images_is_refused(project: Path, settings: Settings, tmp_path: Path) -> None:
    few = EvaluationSpec(make_photographs(tmp_path / "few", 5), None, "val", tmp_path / "comparison")
    candidate = make_model(tmp_path / "better", GOOD).folder
    with pytest.raises(PromotionRefusedError, match="5 images are too few for a comparison; at least 20 are needed"):
        promote(candidate, few, settings)


def test_force_promotes_a_worse_candidate_and_is_recorded(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    worse = make_model(tmp_path / "worse", WORSE)
    entry = promote(worse.folder, spec, settings, "the other one is licensed wrongly")
    assert entry.forced
    assert entry.reason == "the other one is licensed wrongly"
    assert read_bundle(settings.model).model_id == worse.model_id


def test_a_change_of_only_the_manifest_is_promoted_by_force(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    before = state(project)
    champion = read_bundle(settings.model)
    upgraded = add_blocks(champion, tmp_path / "upgraded", ground=GROUND)
    with pytest.raises(PromotionRefusedError) as refused:
        promote(upgraded.folder, spec, settings)
    assert "it has the network of the champion; only the manifest differs: ground, context, self_check" in str(
        refused.value
    )
    assert state(project) == before
    entry = promote(upgraded.folder, spec, settings, "images are rescaled")
    assert (entry.forced, entry.reason, entry.model.model_id) == (True, "images are rescaled", upgraded.model_id)
    promoted = read_bundle(settings.model)
    assert promoted.model_id == upgraded.model_id
    assert promoted.manifest.files["model.onnx"] == champion.manifest.files["model.onnx"]
    assert git(project, "status", "--porcelain") == ""
    versions = list_models(settings.model, None)
    assert [(version.model_id, version.state) for version in versions] == [
        (upgraded.model_id, "champion"),
        (before[0], "previous"),
    ]
    assert roll_back(settings, "too slow").model.model_id == before[0] == read_bundle(settings.model).model_id


def test_the_images_are_presented_as_the_options_say(spec: EvaluationSpec, settings: Settings, tmp_path: Path) -> None:
    # every pixel of the images has a colour of its own, which rescaling destroys
    rescales = add_blocks(make_model(tmp_path / "good", GOOD), tmp_path / "rescales", ground=GROUND).folder
    miou = {}
    for view in (DEFAULT_VIEW, ViewOptions(gsd_m=0.01), ViewOptions(gsd_m=0.01, plain=True)):
        report = compare_models(
            settings.model,
            rescales,
            spec.data,
            spec.report,
            settings=settings,
            view=view,
            replace=True,
            progress=lambda *_: None,
        )
        miou[str(view)] = report.figures[1]["miou"].value
        assert report.about[3:] == ([f"options: {view}"] if str(view) else [])
    assert set(miou) == {"", "--gsd 0.01", "--gsd 0.01 --plain"}
    assert miou["--gsd 0.01"] < 0.5
    assert miou["--gsd 0.01 --plain"] == 1


def test_each_rollback_restores_one_earlier_model(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    first = state(project)
    for name, network in (("worse", WORSE), ("better", GOOD)):
        promote(make_model(tmp_path / name, network).folder, spec, settings, "to try it")
        dvc(project, "push", "--quiet", "nnUNet_results.dvc")
    second = read_registry(project)[0].model.model_id
    shutil.rmtree(project / ".dvc/cache")  # so that the models come from the remote
    assert roll_back(settings, "it is slow").model.model_id == second == read_bundle(settings.model).model_id
    assert roll_back(settings, "that, too").model.model_id == first[0] == read_bundle(settings.model).model_id
    assert (project / "nnUNet_results.dvc").read_text() == first[1]
    assert git(project, "status", "--porcelain") == ""
    with pytest.raises(StoreError, match="has no model before the current one"):
        roll_back(settings, "once more")
    versions = list_models(settings.model, "models")
    assert [(version.state, version.is_local) for version in versions] == [
        ("champion", True),
        ("rolled back", False),
        ("rolled back", False),
    ]
    assert [version.in_remote for version in versions] == [True, True, True]


def test_a_rollback_changes_nothing_if_the_model_is_missing(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    before = state(project)
    shutil.rmtree(project / ".dvc/cache")
    dvc(project, "remote", "modify", "models", "url", str(tmp_path / "empty"))
    git(project, "commit", "--quiet", "--all", "--message", "another remote")
    before = state(project)
    with pytest.raises(StoreError, match="does not have this version"):
        roll_back(settings, "")
    assert state(project) == before


def test_a_failed_commit_undoes_the_promotion(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    hook = project / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho not on a Friday >&2\nexit 1\n")
    hook.chmod(0o755)
    before = state(project)
    with pytest.raises(StoreError, match="not on a Friday"):
        promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    assert state(project) == before
    assert not (project / "model-registry.jsonl").exists()
    hook.unlink()
    promote(tmp_path / "better", spec, settings)


def test_other_uncommitted_changes_are_left_alone(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    (project / "staged.txt").write_text("staged")
    git(project, "add", "staged.txt")
    with (project / ".gitignore").open("a") as ignored:
        ignored.write("/mine\n")
    promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    assert git(project, "status", "--porcelain").split("\n") == ["M .gitignore", "A  staged.txt"]


def test_a_rollback_needs_no_network(project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path) -> None:
    first = state(project)[0]
    shutil.rmtree(project / ".dvc/cache")
    promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    shutil.rmtree(project.parent / "project-remote", ignore_errors=True)
    dvc(project, "remote", "modify", "--local", "models", "url", str(tmp_path / "nowhere"))
    assert roll_back(settings, "").model.model_id == first


def test_uncommitted_changes_of_the_dvc_file_are_refused(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    candidate = make_model(tmp_path / "better", GOOD).folder
    pointer = project / "nnUNet_results.dvc"
    pointer.write_text(pointer.read_text() + "# mine\n")
    with pytest.raises(StoreError, match=r"nnUNet_results\.dvc has uncommitted changes"):
        promote(candidate, spec, settings)


def test_a_rollback_does_not_replace_an_untracked_model(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    shutil.rmtree(settings.model)
    mine = make_model(settings.model, WORSE).model_id
    with pytest.raises(StoreError, match=r"is not the model that .* records"):
        roll_back(settings, "")
    assert read_bundle(settings.model).model_id == mine


def test_ctrl_c_does_not_interrupt_the_change(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    hook = project / ".git/hooks/pre-commit"
    hook.write_text(f"#!/bin/sh\nkill -INT {os.getpid()}\n")
    hook.chmod(0o755)
    entry = promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    assert read_registry(project) == [entry]
    assert read_bundle(settings.model).model_id == entry.model.model_id
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.parametrize("hook", ["pre-commit", "post-commit"])
@pytest.mark.parametrize("cleaned", [False, True], ids=["as-it-is", "git-checkout"])
def test_the_next_command_undoes_a_promotion_that_was_killed(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path, hook: str, *, cleaned: bool
) -> None:
    before = state(project)
    better = make_model(tmp_path / "better", GOOD)
    file = project / f".git/hooks/{hook}"
    file.write_text("#!/bin/sh\nkill -9 $(ps -o ppid= -p $PPID)\nexit 1\n")
    file.chmod(0o755)
    options = ("--data", str(spec.data), "--report", str(spec.report))
    killed = Workspace(project).run("models", "promote", str(better.folder), *options, check=False)
    assert killed.returncode == -signal.SIGKILL
    file.unlink()
    (project / ".git/index.lock").unlink(missing_ok=True)
    assert read_bundle(settings.model).model_id == better.model_id
    if cleaned:
        git(project, "checkout", "--quiet", ".")
    Workspace(project).run("models", "pull")
    if hook == "pre-commit":
        assert state(project) == before
        promote(better.folder, spec, settings)
    assert read_bundle(settings.model).model_id == better.model_id == read_registry(project)[-1].model.model_id
    assert git(project, "status", "--porcelain") == ""
    assert [path.name for path in settings.model.parent.iterdir()] == ["champion"]


def test_a_model_pushed_to_the_repository_can_be_pulled_in_a_clone(spec: EvaluationSpec, tmp_path: Path) -> None:
    project, shared, clone = tmp_path / "project", tmp_path / "shared.git", tmp_path / "clone"
    champion = make_project(project, remote=str(project / "dvc-remote"))
    shutil.copy(ROOT / ".dvc/config", project / ".dvc/config")  # the configuration shipped with droneseg
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "as it comes")
    git(tmp_path, "init", "--quiet", "--bare", str(shared))
    settings = Settings(model=champion, cache_dir=tmp_path / "compiled")
    promoted = promote(make_model(tmp_path / "better", GOOD).folder, spec, settings).model.model_id
    output = Workspace(project).run("models", "push").stdout
    assert "git add dvc-remote && git commit && git push" in output
    git(project, "add", "dvc-remote")
    git(project, "commit", "--quiet", "--message", "keep it")
    git(project, "push", "--quiet", str(shared), "main")
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(shared), str(clone))
    Workspace(clone).run("models", "pull")
    assert read_bundle(clone / "nnUNet_results/champion").model_id == promoted
    assert git(clone, "status", "--porcelain") == ""


def test_a_report_folder_in_use_is_refused_before_predicting(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    spec.report.mkdir()
    (spec.report / "mine.txt").touch()
    asked: list[str] = []
    with pytest.raises(OutputExistsError, match="was not created by this command"):
        promote_model(
            make_model(tmp_path / "better", GOOD).folder, spec, settings=settings, progress=lambda *_: asked.append("")
        )
    assert asked == []


def test_concurrent_promotions_run_one_after_the_other(project: Path, spec: EvaluationSpec, tmp_path: Path) -> None:
    def promote_by_force(name: str) -> subprocess.CompletedProcess[str]:
        options = ("--data", str(spec.data), "--force", name, "--report", str(tmp_path / f"report-{name}"))
        return Workspace(project).run("models", "promote", str(tmp_path / name), *options, check=False)

    for name, network in (("better", GOOD), ("worse", WORSE)):
        make_model(tmp_path / name, network)
    with ThreadPoolExecutor(2) as pool:
        promotions = list(pool.map(promote_by_force, ("better", "worse")))
    errors = [promotion.stderr for promotion in promotions]
    codes = [promotion.returncode for promotion in promotions]
    entries = read_registry(project)
    assert len(entries) == codes.count(0) >= 1
    message = "Another model became the champion during the comparison"
    assert all(message in text for text, code in zip(errors, codes, strict=True) if code)
    for before, after in itertools.pairwise(entries):
        assert after.previous == before.model
    ids = {entry.model.model_id: entry.model.version for entry in entries}
    assert len(set(ids.values())) == len(ids)
    assert read_dvc_file(project / "nnUNet_results.dvc") == entries[-1].model.version
    assert read_bundle(project / "nnUNet_results/champion").model_id == entries[-1].model.model_id


def test_a_lock_held_by_git_changes_nothing(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    candidate = make_model(tmp_path / "better", GOOD).folder
    before = state(project)
    (project / ".git/index.lock").touch()
    with pytest.raises(StoreError, match=r"index\.lock"):
        promote(candidate, spec, settings)
    (project / ".git/index.lock").unlink()
    assert state(project) == before


def test_a_champion_changed_by_hand_is_refused(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path
) -> None:
    candidate = make_model(tmp_path / "better", GOOD).folder
    shutil.rmtree(settings.model)
    make_model(settings.model, WORSE)
    with pytest.raises(StoreError, match=r"is not the model that .* records"):
        promote(candidate, spec, settings)


def test_a_missing_champion_is_fetched(project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path) -> None:
    shutil.rmtree(project / "nnUNet_results")
    promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)
    assert read_bundle(settings.model).model_id == read_bundle(tmp_path / "better").model_id


def test_the_first_champion_needs_force(tmp_path: Path, spec: EvaluationSpec) -> None:
    project = tmp_path / "fresh"
    shutil.rmtree(make_project(project).parent)
    for name in ("nnUNet_results.dvc",):
        git(project, "rm", "--quiet", name)
    git(project, "commit", "--quiet", "--message", "no champion")
    settings = Settings(model=project / "nnUNet_results/champion", cache_dir=tmp_path / "compiled")
    candidate = make_model(tmp_path / "first", GOOD).folder
    with pytest.raises(PromotionRefusedError, match="there is no champion to compare it with"):
        promote(candidate, spec, settings)
    entry = promote(candidate, spec, settings, "the first one")
    assert entry.previous is None
    assert git(project, "status", "--porcelain") == ""
    shutil.rmtree(project / "nnUNet_results")
    assert pull_model(settings.model).bundle.model_id == entry.model.model_id


def test_a_missing_git_identity_is_reported_with_its_remedy(
    project: Path, spec: EvaluationSpec, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(project, "config", "--unset", "user.email")
    git(project, "config", "user.useConfigOnly", "true")
    for name in ("GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    with pytest.raises(StoreError, match=r"git config user\.name NAME"):
        promote(make_model(tmp_path / "better", GOOD).folder, spec, settings)


def test_a_project_without_git_is_refused(tmp_path: Path, spec: EvaluationSpec) -> None:
    champion = make_project(tmp_path / "plain", scm=False)
    with pytest.raises(StoreError, match="not a git repository"):
        promote(make_model(tmp_path / "better", GOOD).folder, spec, Settings(model=champion))


def test_the_lineage_grows_by_promotions_and_shrinks_by_rollbacks() -> None:
    one, two, three = (
        RegisteredModel(model_id=name, version=DvcOutput(f"{name}.dir", 1, 1)) for name in ("one", "two", "three")
    )

    def change(action: str, model: RegisteredModel, previous: RegisteredModel | None) -> RegistryEntry:
        return RegistryEntry.model_validate(
            {"when": "", "who": "", "action": action, "model": model, "previous": previous, "reason": ""}
        )

    entries = [change("promote", two, one), change("promote", three, two), change("rollback", two, three)]
    assert champion_lineage(entries) == [one, two]
    # a promotion whose predecessor is not the last champion, for example after a merge
    assert champion_lineage([*entries, change("promote", one, three)]) == [one, two, three, one]
    assert known_ids(entries) == {"one", "two", "three"}


def test_a_broken_registry_is_reported_with_its_line(project: Path) -> None:
    (project / "model-registry.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match=r"model-registry\.jsonl, line 1 is not a valid entry"):
        read_registry(project)
    assert subprocess.run(["git", "status"], cwd=project, capture_output=True, check=False).returncode == 0


def test_models_are_compared_on_a_raw_dataset_of_nnunet(tmp_path: Path) -> None:
    raw = make_raw_dataset(tmp_path / "Dataset205_Own", train=3, channels="GBR", ignore=True)
    names = make_model(tmp_path / "a", GOOD).manifest.class_table.names
    labels = {name: index for index, name in enumerate(names)} | {"ignore": len(names)}
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(description | {"labels": labels}))
    make_model(tmp_path / "b", POOR)
    report = compare_models(
        tmp_path / "a",
        tmp_path / "b",
        raw,
        tmp_path / "report",
        settings=Settings(cache_dir=tmp_path / "compiled"),
        progress=lambda _name, _done, _total: None,
    )
    assert report.images == 3


def test_models_of_different_classes_are_not_compared(photographs: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "a", GOOD)
    own = ClassTable(tuple(replace(entry, name=f"my {entry.name}") for entry in DEFAULT_CLASSES))
    make_bundle(tmp_path / "b", classes=own)
    with pytest.raises(DronesegError, match=r"have different class tables, so they cannot be compared: .*my water"):
        compare_models(
            tmp_path / "a",
            tmp_path / "b",
            photographs,
            tmp_path / "report",
            settings=Settings(cache_dir=tmp_path / "compiled"),
            progress=lambda _name, _done, _total: None,
        )
    assert not (tmp_path / "report").exists()
