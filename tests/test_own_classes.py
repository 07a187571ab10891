"""End to end: a dataset of eight classes of its own, from its folder to both services; no word of the default table."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy import ndimage

from droneseg.core.class_files import CLASSES_NAME, MaskColours, write_classes
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.images import encode_png
from droneseg.core.masks import Mask
from droneseg.core.settings import Settings
from droneseg.data.synthetic import LANDING, MOVING, OBSTACLE, SOFT, WATER, generate_scene
from droneseg.serving.app import create_app
from support.server import BENTO, serving
from support.waiting import wait_until
from support.workspace import TINY, Workspace

OWN = ClassTable(
    tuple(
        SegmentationClass(number, name, colour, role)
        for number, (name, colour, role) in enumerate(
            (
                ("void", (12, 12, 40), None),
                ("road", (200, 60, 10), Role.LANDING),
                ("roof", (90, 20, 30), Role.OBSTACLE),
                ("parked car", (0, 255, 180), Role.MOVING),
                ("person", (255, 240, 160), Role.MOVING),
                ("pond", (30, 30, 250), Role.WATER),
                ("meadow", (70, 130, 20), Role.SOFT),
                ("tree", (10, 70, 50), Role.OBSTACLE),
                ("rail", (240, 0, 255), None),
            )
        )
    )
)
NO_ROLES = ClassTable(tuple(replace(entry, role=None) for entry in OWN))
SIZE = (96, 80)
PHOTOGRAPHS = 26  # 20 of them for the drift reference
# in prose, "landing zone" and "water" are words like others
FOREIGN = re.compile(r"\b(landing-zones?|soft-surfaces?|moving-objects?|obstacles)\b|share_(water|background)")
FOREIGN_COLOURS = {entry.colour for entry in DEFAULT_CLASSES.foreground}
NO_ROLE = "no landing role in this model"


def own_mask(mask: Mask) -> Mask:
    """Return the mask of a generated scene in eight classes: large and small objects, left and right ground."""
    own = np.zeros_like(mask)
    for class_id, small, large in ((OBSTACLE, 7, 2), (MOVING, 4, 3)):
        regions, _ = ndimage.label(mask == class_id)
        areas = np.bincount(regions.ravel())[regions]
        own[mask == class_id] = np.where(areas > 60, large, small)[mask == class_id]
    right = np.arange(mask.shape[1]) > 0.6 * mask.shape[1]
    own[mask == LANDING] = np.broadcast_to(np.where(right, 8, 1), mask.shape)[mask == LANDING]
    own[mask == WATER], own[mask == SOFT] = 5, 6
    own[:2] = 0
    return own


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """Everything that a command or a service said."""
    return []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, printed: list[str]) -> Workspace:
    """Dataset with a class table, a training on it, and the bundles `roles` and `plain`, which has no roles."""
    workspace = Workspace(tmp_path_factory.mktemp("own"))
    for name in ("images", "masks"):
        (workspace.root / "data" / name).mkdir(parents=True)
    for number in range(PHOTOGRAPHS):
        image, mask = generate_scene(number, *SIZE)
        for name, pixels in (("images", image), ("masks", OWN.colours()[own_mask(mask)])):
            (workspace.root / f"data/{name}/{number:03d}.png").write_bytes(encode_png(pixels))
    write_classes(workspace.root / "data" / CLASSES_NAME, MaskColours(OWN))
    write_classes(workspace.root / "plain.csv", MaskColours(NO_ROLES))
    names = [f"{number:03d}" for number in range(PHOTOGRAPHS)]
    (workspace.root / "split.json").write_text(json.dumps({"train": names[:4], "val": names[4:]}))
    for line in (
        "data check data",
        "data stats data",
        "data convert data --split split.json --gsd 0.03",
        "data check nnUNet_raw/Dataset101_DroneSeg",
        "preprocess --processes 2",
        f"train {' '.join(TINY)} validation=none",
        "export --out roles --images 4 --license none",
        "export --out plain --images 4 --license none --classes plain.csv",
    ):
        done = workspace.run(*line.split())
        printed += [done.stdout, done.stderr]
    return workspace


def run(project: Workspace, printed: list[str], line: str, **options: Any) -> str:
    done = project.run(*line.split(), **options)
    printed += [done.stdout, done.stderr]
    return done.stdout + done.stderr


def in_palette(data: bytes, classes: ClassTable = OWN) -> bool:
    """Return whether a mask file has these colours, and no others, at the places of their ids."""
    image = Image.open(io.BytesIO(data))
    palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[: len(classes)]
    return bool((palette == classes.colours()).all()) and int(np.asarray(image).max()) < len(classes)


@pytest.fixture(scope="module")
def photograph(project: Workspace) -> bytes:
    return (project.root / "data/images/010.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "classes"), [("roles", OWN), ("plain", NO_ROLES)])
def test_commands_use_the_classes_of_the_data(
    project: Workspace, printed: list[str], bundle: str, classes: ClassTable
) -> None:
    manifest = json.loads((project.root / bundle / "manifest.json").read_text())
    stored = [(entry["id"], entry["name"], tuple(entry["colour"]), entry["role"]) for entry in manifest["classes"]]
    assert stored == [(entry.id, entry.name, entry.colour, entry.role) for entry in classes]
    assert manifest["quality"].get("landing_note", "") == classes.landing_note
    printed.append(json.dumps(manifest))
    shown = run(project, printed, f"models show {bundle}")
    masks = f"masks-{bundle}"
    predicted = run(
        project, printed, f"predict data --model {bundle} --out {masks} --overlay --split split.json --part val --json"
    )
    run(
        project, printed, f"predict data --model {bundle} --out ids-{bundle} --format ids --split split.json --part val"
    )
    results = json.loads(predicted[predicted.index("{") : predicted.rindex("}") + 1])["results"]
    assert len(results) == PHOTOGRAPHS - 4
    assert all(tuple(result["class_fractions"]) == OWN.names for result in results)
    assert all(in_palette((project.root / masks / f"{number:03d}.png").read_bytes()) for number in range(4, 10))
    drawn = np.asarray(Image.open(project.root / masks / "010_overlay.png").convert("RGB"))
    legend = {tuple(colour) for colour in drawn[SIZE[1] :].reshape(-1, 3).tolist()}
    mask = np.asarray(Image.open(project.root / masks / "010.png"))
    assert {classes.display_colour(class_id) for class_id in np.unique(mask)} <= legend
    assert not legend & FOREIGN_COLOURS
    evaluated = run(project, printed, f"evaluate {masks} data --report report-{bundle}")
    report = (project.root / f"report-{bundle}/report.md").read_text()
    printed += [report, (project.root / f"report-{bundle}/report.json").read_text()]
    for text in (evaluated, report, shown):
        assert all(name in text for name in OWN.names[1:])
        assert (NO_ROLE in text) == (bundle == "plain" and text == shown)
    assert "predicted as road that are roof or parked car or person or pond or tree" in report


@pytest.mark.slow
def test_commands_say_that_no_class_has_a_landing_role(project: Workspace, printed: list[str]) -> None:
    found = project.run("land", "data/images/010.png", "--model", "roles", "--json")
    printed.append(found.stdout)
    (result,) = json.loads(found.stdout)["results"]
    assert result["answer"]["policy"]["allow"] == ["road"]
    assert (result["answer"]["policy"]["bound"], result["answer"]["policy"]["calibrated_on"]) == (None, None)
    refused = project.run("land", "data/images/010.png", "--model", "plain", check=False)
    printed.append(refused.stderr)
    assert refused.returncode == 1
    assert f"error: There is {NO_ROLE}, so nothing can be said about landing; its classes are road" in refused.stderr
    without = project.root / "without"
    (without / "masks").mkdir(parents=True)
    for file in (project.root / "data/masks").iterdir():
        (without / "masks" / file.name).write_bytes(file.read_bytes())
    write_classes(without / CLASSES_NAME, MaskColours(NO_ROLES))
    evaluated = run(project, printed, "evaluate masks-plain without/masks --report report-without")
    report = (project.root / "report-without/report.md").read_text()
    for text in (evaluated, report):
        assert NO_ROLE in text
        assert "unsafe landing rate" not in text
        assert "landing recall" not in text


@pytest.fixture
def client(request: pytest.FixtureRequest, project: Workspace, tmp_path: Path) -> Iterator[TestClient]:
    """FastAPI application with one of the bundles."""
    settings = Settings(
        _env_file=None,
        model=project.root / request.param,
        records_url=str(tmp_path / "records"),
        reports_url=str(tmp_path / "reports"),
    )
    with TestClient(create_app(settings)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.mark.slow
@pytest.mark.usefixtures("normal_priority")
@pytest.mark.parametrize("client", ["roles"], indirect=True)
def test_fastapi_uses_the_classes_of_the_bundle(
    client: TestClient, project: Workspace, printed: list[str], tmp_path: Path
) -> None:
    for number in range(4, PHOTOGRAPHS):
        photograph = (project.root / f"data/images/{number:03d}.png").read_bytes()
        answer = client.post("/predict", files=[("data", ("a.png", photograph))]).raise_for_status().json()
        assert tuple(answer["class_fractions"]) == OWN.names
        assert in_palette(base64.b64decode(answer["segmentation_mask"]))
    found = client.post("/landing_sites", files=[("data", ("a.png", photograph))]).raise_for_status().json()
    assert found["policy"]["allow"] == ["road"]
    assert found["policy"]["calibrated_on"] is None
    check_description(client, printed, OWN)
    example = client.get("/openapi.json").json()["paths"]["/landing_sites"]["post"]["responses"]["200"]
    site = example["content"]["application/json"]["examples"]["site"]["value"]
    assert site["policy"]["bound"] is None
    assert list(site["sites"][0]["clearance_px"]) == ["roof", "parked car", "person", "pond", "tree"]
    report = client.get("/drift").raise_for_status().json()
    page = Path(report["url"].removeprefix("file://")).read_text()
    assert all(f"share_{name}" in page for name in OWN.names[1:])
    assert "share_void" not in page
    printed += [json.dumps(report), page]
    printed += [file.read_text() for file in (tmp_path / "records").rglob("*.jsonl")]


def check_description(client: TestClient, printed: list[str], classes: ClassTable) -> None:
    """Check what a service says about its model."""
    described = client.get("/model_info").json()["classes"]
    assert described == client.get("/ui/settings.json").json()["classes"]
    for entry, sent in zip(classes, described, strict=True):
        assert sent == {
            "id": entry.id,
            "name": entry.name,
            "colour": list(entry.colour),
            "role": entry.role,
            "display": list(classes.display_colour(entry.id)),
        }
    metrics = client.get("/metrics").text
    assert set(re.findall(r'class_name="(.*?)"', metrics)) == set(OWN.names)
    printed += [metrics, client.get("/openapi.json").text, client.get("/model_info").text]


@pytest.mark.slow
@pytest.mark.parametrize("client", ["plain"], indirect=True)
def test_fastapi_says_that_there_is_no_landing_role(client: TestClient, photograph: bytes, printed: list[str]) -> None:
    client.post("/predict", files=[("data", ("a.png", photograph))]).raise_for_status()
    response = client.post("/landing_sites", files=[("data", ("a.png", photograph))])
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "no_landing_role"
    assert NO_ROLE in error["message"]
    check_description(client, printed, NO_ROLES)
    landing = client.get("/openapi.json").json()["paths"]["/landing_sites"]["post"]["responses"]["200"]
    assert landing["content"]["application/json"]["examples"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["roles", "plain"])
def test_bentoml_uses_the_classes_of_the_bundle(
    project: Workspace, photograph: bytes, printed: list[str], tmp_path: Path, bundle: str
) -> None:
    with serving(tmp_path, backend=BENTO, model=project.root / bundle) as server:
        answer = server.predict(photograph).raise_for_status().json()
        assert tuple(answer["class_fractions"]) == OWN.names
        assert in_palette(base64.b64decode(answer["segmentation_mask"]))
        found = server.find_sites(photograph)
        if bundle == "roles":
            assert found.json()["policy"]["allow"] == ["road"]
        else:
            assert (found.status_code, found.json()["error"]["code"]) == (422, "no_landing_role")
            assert NO_ROLE in found.json()["error"]["message"]
        texts = [httpx.get(f"{server.url}{path}").text for path in ("/metrics", "/model_info", "/docs.json")]
    assert set(re.findall(r'class_name="(.*?)"', texts[0])) == set(OWN.names)
    printed += [json.dumps(answer), found.text, *texts]


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_no_output_has_a_word_of_the_default_table(printed: list[str]) -> None:
    assert len(printed) > 20
    for text in printed:
        assert not (match := FOREIGN.search(text)), text[max(0, match.start() - 200) : match.end() + 80]
