"""Both backends return the same masks, byte for byte, and the same statuses, error codes and messages.

The command line and Python also return the same masks, ground resolutions and warnings.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import droneseg
from droneseg.core.landing_grid import LandingPolicy
from droneseg.core.masks import encode_mask
from droneseg.data.synthetic import generate_scene
from droneseg.model.bundle import Calibration, FeatureRange, UnlikeTraining
from support.bundles import BIASES, CONTEXT, TRAINED_AT, WEIGHTS, make_bundle
from support.hostile import OK, Hostile, corpus
from support.server import BENTO, BENTO_BASE64, FASTAPI, Server, serving
from support.workspace import COMMAND

API_KEY = "open sesame"
KEY = {"X-API-Key": API_KEY}
WAYS = ("bento", "bento-base64")


@contextmanager
def both(factory: pytest.TempPathFactory, model: Path) -> Iterator[dict[str, Server]]:
    """Run both backends with this model."""
    options = {"model": model, "api_key": API_KEY}
    with (
        serving(factory.mktemp("fastapi"), backend=FASTAPI, **options) as fastapi,
        serving(factory.mktemp("bento"), backend=BENTO, **options) as bento,
    ):
        yield {"fastapi": fastapi, "bento": bento, "bento-base64": replace(bento, backend=BENTO_BASE64)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Both backends with a bundle that uses the pixels as they are."""
    champion = tmp_path_factory.mktemp("model") / "champion"
    make_bundle(champion, patch=(64, 64))
    with both(tmp_path_factory, champion) as servers:
        yield servers


@pytest.fixture(scope="module")
def bundle_with_views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "champion"
    usual = UnlikeTraining(features={"brightness": FeatureRange(low=0.3, centre=0.4)}, source="test")
    calibration = Calibration(temperature=1.5, source="test", unlike_training=usual)
    return make_bundle(
        folder,
        patch=(64, 64),
        ground=TRAINED_AT,
        context=CONTEXT,
        calibration=calibration,
        landing={"fast": LandingPolicy(danger_limit=0.7, moving_limit=0.3)},  # the network is never certain
    ).folder


@pytest.fixture(scope="module")
def servers_with_views(
    tmp_path_factory: pytest.TempPathFactory, bundle_with_views: Path
) -> Iterator[dict[str, Server]]:
    """Both backends with a bundle that states the ground resolution of its training images."""
    with both(tmp_path_factory, bundle_with_views) as servers:
        yield servers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hostile", corpus(), ids=lambda hostile: hostile.name)
def test_bentoml_response_matches_fastapi_for_every_corpus_file(
    servers: dict[str, Server], way: str, hostile: Hostile
) -> None:
    response = servers[way].predict(hostile.data, **KEY)
    result = response.json()
    assert (response.status_code, "" if response.status_code == 200 else result["error"]["code"]) == hostile.answer
    expected = servers["fastapi"].predict(hostile.data, **KEY).json()
    if response.status_code == 200:
        del expected["filename"], result["model_loaded"], expected["timings_s"], result["timings_s"]
    assert result == expected


def photograph(*, height: str | None = None, pitch: str = "-90", rotated: bool = False, dark: bool = False) -> bytes:
    """JPEG of a scene with the XMP of a DJI camera: a focal length of 2000 pixels, and a height if one is given."""
    image = Image.fromarray(generate_scene(5, 300, 200)[0]).point(lambda value: value // 3 if dark else value)
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" '
        f'drone-dji:CalibratedFocalLength="2000" drone-dji:GimbalPitchDegree="{pitch}" '
        + (f'drone-dji:RelativeAltitude="{height}" ' if height else "")
        + "/></rdf:RDF></x:xmpmeta>"
    )
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif, xmp=xmp.encode())
    return buffer.getvalue()


PHOTOGRAPHS = {
    "without a height": photograph(),
    "at 25 m": photograph(height="+25.00"),
    "at 100 m": photograph(height="+100.00"),
    "rotated": photograph(height="+25.00", rotated=True),
    "oblique": photograph(height="+25.00", pitch="-45"),
    "dark": photograph(height="+25.00", dark=True),
}
OPTIONS: dict[str, dict[str, object]] = {
    "no option": {},
    "gsd": {"gsd_m": 0.02},
    "height": {"height_m": 70.5},
    "plain": {"plain": True},
}
EXPECTED_GSD_M = {
    ("without a height", "no option"): None,
    ("without a height", "height"): 70.5 / 2000,
    ("at 25 m", "no option"): 25 / 2000,
    ("at 100 m", "no option"): 100 / 2000,
    ("rotated", "no option"): 25 / 2000,
    ("oblique", "no option"): None,
    ("oblique", "gsd"): None,  # a pixel has no single size on the ground
}
Answer = tuple[bytes, object, object]
"""Mask file, ground resolution and warnings."""


def answer_of_service(server: Server, data: bytes, options: dict[str, object]) -> Answer:
    response = server.predict(data, options, **KEY)
    assert response.status_code == 200, response.text
    result = response.json()
    return base64.b64decode(result["segmentation_mask"]), result["ground"], result["warnings"]


def answer_of_python(model: droneseg.Model, data: bytes, options: dict[str, object]) -> Answer:
    result = model(data, **options)  # type: ignore[arg-type]
    warnings = [warning.model_dump(mode="json") for warning in result.warnings]
    return encode_mask(result.mask, result.classes), result.ground.model_dump(mode="json"), warnings


@pytest.fixture(scope="module")
def commands(bundle_with_views: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Answer]:
    """Results of `droneseg predict` by photograph and options."""
    folder = tmp_path_factory.mktemp("predict")
    for name, data in PHOTOGRAPHS.items():
        (folder / f"{name}.jpg").write_bytes(data)
    answers = {}
    for name, options in OPTIONS.items():
        out = folder / name
        flags = {"gsd_m": "--gsd", "height_m": "--height"}
        words = [
            word
            for key, value in options.items()
            for word in ((flags[key], str(value)) if key in flags else ("--plain",))
        ]
        command = [*COMMAND, "predict", str(folder), "--model", str(bundle_with_views), "--out", str(out), *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for line in (out / "predictions.jsonl").read_text().splitlines():
            found = json.loads(line)["prediction"]
            stem = Path(found["source"]).stem
            answers[stem, name] = ((out / f"{stem}.png").read_bytes(), found["ground"], found["warnings"])
    return answers


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_services_command_and_python_give_the_same_result(
    servers_with_views: dict[str, Server],
    bundle_with_views: Path,
    commands: dict[tuple[str, str], Answer],
    name: str,
    options: str,
) -> None:
    model = droneseg.load(bundle_with_views)
    expected = answer_of_python(model, PHOTOGRAPHS[name], OPTIONS[options])
    for server in servers_with_views.values():
        assert answer_of_service(server, PHOTOGRAPHS[name], OPTIONS[options]) == expected, server.backend.name
    assert commands[name, options] == expected
    if (name, options) in EXPECTED_GSD_M:
        assert expected[1]["gsd_m"] == EXPECTED_GSD_M[name, options]  # type: ignore[index]


LANDING_OPTIONS: dict[str, dict[str, object]] = {
    "defaults": {},
    "in pixels": {"radius_px": 6, "clearance_px": 1, "clearance_people_px": 2, "max_sites": 3},
    "in metres": {"radius_m": 0.2, "clearance_m": 0.05, "clearance_people_m": 0.1},
    "soft": {
        "radius_px": 6,
        "clearance_px": 1,
        "clearance_people_px": 2,
        "allow": "landing-zones,soft-surfaces",
        "gsd_m": 0.025,
    },
}
WITH_SITE = {
    ("defaults", "without a height"),
    *((options, name) for options in ("in pixels", "soft") for name in PHOTOGRAPHS if name not in ("oblique", "dark")),
    *(("in metres", name) for name in ("at 25 m", "at 100 m", "rotated")),
}
"""Options and photographs for which there is a landing site."""


@pytest.mark.parametrize("options", LANDING_OPTIONS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_services_and_python_find_the_same_landing_sites(
    servers_with_views: dict[str, Server], bundle_with_views: Path, name: str, options: str
) -> None:
    wanted = dict(LANDING_OPTIONS[options])
    gsd_m = wanted.pop("gsd_m", None)
    allow = str(wanted.pop("allow", "landing-zones")).split(",")
    result = droneseg.load(bundle_with_views)(PHOTOGRAPHS[name], gsd_m=gsd_m, landing=True)  # type: ignore[arg-type]
    expected = result.landing_sites(**wanted, allow=allow).model_dump(mode="json", by_alias=True)  # type: ignore[arg-type]
    assert (expected["decision"] == "site") == ((options, name) in WITH_SITE)
    for server in servers_with_views.values():
        response = server.find_sites(PHOTOGRAPHS[name], LANDING_OPTIONS[options], **KEY)
        assert response.status_code == 200, response.text
        assert response.json() == expected, server.backend.name


def test_the_command_finds_the_same_landing_sites(bundle_with_views: Path, tmp_path: Path) -> None:
    for name, data in PHOTOGRAPHS.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    words = ["land", str(tmp_path), "--model", str(bundle_with_views), "--radius-px", "6", "--json"]
    done = subprocess.run([*COMMAND, *words], cwd=tmp_path, check=True, capture_output=True)
    model = droneseg.load(bundle_with_views)
    answers = {Path(found["source"]).stem: found["answer"] for found in json.loads(done.stdout)["results"]}
    assert answers["without a height"]["sites"]
    for name, data in PHOTOGRAPHS.items():
        expected = model(data).landing_sites(radius_px=6).model_dump(mode="json", by_alias=True)
        assert answers[name] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius_m": 0}, "radius_m"),
        ({"radius_m": 1, "radius_px": 2}, "radius_m and radius_px are both given"),
        ({"allow": "water"}, "allow"),
        ({"radius": 1}, "radius is not an option. Send radius_m or radius_px."),
        ({"gsd_m": 0.02, "height_m": 40}, "gsd_m and height_m are both given. Send one of them."),
    ],
    ids=str,
)
def test_wrong_landing_options_get_the_same_error(
    servers: dict[str, Server], options: dict[str, object], message: str
) -> None:
    responses = {name: server.find_sites(PHOTOGRAPHS["at 25 m"], options, **KEY) for name, server in servers.items()}
    for name, response in responses.items():
        if name == "bento" and "radius" in options:
            continue  # headers of other names are not options
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
        assert message in response.json()["error"]["message"]


def test_results_depend_on_the_options(bundle_with_views: Path) -> None:
    model = droneseg.load(bundle_with_views)
    assert model(PHOTOGRAPHS["dark"]).warnings[-1].message.endswith("do not rely on the result. It is darker.")
    masks = {name: answer_of_python(model, PHOTOGRAPHS["at 25 m"], options)[0] for name, options in OPTIONS.items()}
    assert len(set(masks.values())) == len(masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gsd_m": 0}, "gsd_m is '0'. Send metres per pixel"),
        ({"height_m": -3, "plain": "maybe"}, "height_m is '-3'. Send the height above ground"),
        ({"gsd_m": 0.02, "height_m": 40}, "gsd_m and height_m are both given. Send one of them."),
    ],
    ids=str,
)
def test_wrong_options_get_the_same_error(servers: dict[str, Server], options: dict[str, object], message: str) -> None:
    responses = {name: server.predict(PHOTOGRAPHS["at 25 m"], options, **KEY) for name, server in servers.items()}
    for response in responses.values():
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
        assert message in response.json()["error"]["message"]
    assert responses["bento"].text == responses["fastapi"].text


@pytest.mark.parametrize("format_version", [1, 2])
def test_bundle_without_a_ground_resolution_uses_the_pixels_as_they_are(tmp_path: Path, format_version: int) -> None:
    model = droneseg.load(make_bundle(tmp_path / "old", patch=(64, 64), format_version=format_version).folder)
    for data in PHOTOGRAPHS.values():
        result = model(data)
        # the network classifies each pixel by its colour, wherever the tiles are
        logits = np.einsum("kc,hwc->khw", np.array(WEIGHTS), result.image / 255) + np.array(BIASES)[:, None, None]
        best = np.sort(logits, axis=0)
        clear = best[-1] - best[-2] > 0.1
        assert (result.mask == logits.argmax(axis=0))[clear].all()
        assert clear.mean() > 0.5
        assert "unknown_scale" in result.ground.warnings
        assert result.ground.scale == 1


def test_model_info_and_unknown_paths_return_the_same_response(
    servers: dict[str, Server],
) -> None:
    for method, path in (
        ("GET", "/model_info"),
        ("GET", "/model_info/"),
        ("GET", "/readyz"),
        ("GET", "/nowhere"),
        ("POST", "/nowhere"),
        ("DELETE", "/readyz"),
        ("POST", "/metrics"),
        ("GET", "//"),
        ("GET", "/a/../readyz"),
        ("GET", "/livez%0a"),
        ("POST", "/static_content/"),
    ):
        ours, expected = (
            httpx.request(method, f"{servers[name].url}{path}", headers=KEY) for name in ("bento", "fastapi")
        )
        assert (method, path, ours.status_code) == (method, path, expected.status_code)
        if (method, path) != ("GET", "//"):
            assert ours.json() == expected.json()
        assert ("Allow" in ours.headers) == ("Allow" in expected.headers)


def test_metrics_have_the_same_names_and_labels(servers: dict[str, Server]) -> None:
    names = [
        {line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith("# ")}
        for server in (servers["bento"], servers["fastapi"])
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 30


def test_too_large_body_returns_the_same_error(servers: dict[str, Server]) -> None:
    answers = [servers[way].predict(bytes(31 << 20), **KEY) for way in ("fastapi", *WAYS)]
    assert {answer.status_code for answer in answers} == {413}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("way", WAYS)
def test_missing_api_key_returns_the_same_error(servers: dict[str, Server], way: str) -> None:
    data = next(file.data for file in corpus() if file.answer == OK)
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Basic x"}):
        response = servers[way].predict(data, **headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json() == servers["fastapi"].predict(data, **headers).json()
    assert servers[way].predict(data, Authorization=f"Bearer {API_KEY}").status_code == 200


CLIENT = """
import base64, bentoml, sys
image = sys.stdin.buffer.read()
text = base64.b64encode(image).decode()
with bentoml.SyncHTTPClient(sys.argv[1], token=sys.argv[2]) as client:
    first, second = client.predict_base64(req={"image_b64": text}), client.predict_image_bytes(image)
assert first["model_loaded"]
assert first | {"timings_s": {}} == second | {"timings_s": {}}
"""


def test_bentoml_client_sends_the_key_as_token(servers: dict[str, Server]) -> None:
    image = next(file.data for file in corpus() if file.answer == OK)
    # in its own process: BentoML emits warnings and creates a folder
    command = [sys.executable, "-W", "ignore", "-c", CLIENT, servers["bento"].url]
    right, wrong = (subprocess.run([*command, key], input=image, capture_output=True) for key in (API_KEY, "no"))
    assert right.returncode == 0, right.stderr
    assert b"Send it in the header X-API-Key" in wrong.stderr
