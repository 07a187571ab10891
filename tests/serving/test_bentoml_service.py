"""BentoML backend: base64 bodies, errors, documented commands, start with invalid settings."""

import base64
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.masks import read_mask
from support.bundles import make_bundle
from support.images import png
from support.programs import require_program
from support.server import BENTO, Server, serving
from support.waiting import HANG_S

PAGE = Path(__file__).parents[2] / "docs" / "bento.md"
README = PAGE.parents[1] / "README.md"
PHOTO = png(np.full((40, 50, 3), 220, np.uint8))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bento")
    make_bundle(folder / "champion", patch=(64, 64))
    with serving(folder, backend=BENTO, model=folder / "champion") as server:
        yield server


def post(server: Server, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.post(f"{server.url}/predict_base64", content=content, headers=headers, timeout=HANG_S)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_predict_base64_returns_every_field(server: Server) -> None:
    result = post(server, {"req": {"image_b64": encoded(PHOTO), "content_type": "image/png"}}).json()
    assert result["model_loaded"] is True
    assert "filename" not in result
    assert result["prediction_shape"] == [40, 50]
    assert result["classes_found"] == [5]
    assert result["class_fractions"] == {entry.name: float(entry.id == 5) for entry in DEFAULT_CLASSES}
    assert set(result) == {
        "prediction_shape",
        "classes_found",
        "segmentation_mask",
        "class_fractions",
        "confidence",
        "model_id",
        "timings_s",
        "ground",
        "warnings",
        "model_loaded",
    }
    assert [item["code"] for item in result["warnings"]] == ["unknown_scale"]


def test_options_are_fields_of_the_json_or_headers_of_a_raw_body(server: Server) -> None:
    for response in (
        post(server, {"req": {"image_b64": encoded(PHOTO), "gsd_m": 0.02, "plain": True}}),
        httpx.post(
            f"{server.url}/predict_image_bytes",
            content=PHOTO,
            headers={"Content-Type": "image/png", "X-GSD-M": "0.02", "X-Plain": "true"},
        ),
    ):
        ground = response.json()["ground"]
        assert (ground["gsd_m"], ground["gsd_error"], ground["source"]) == (0.02, 0, "argument")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([("X-GSD-M", "2 cm")], "gsd_m is '2 cm'. Send metres per pixel, 1e-06 to 10000, for example 0.025."),
        ([("X-GSD-M", "1"), ("X-GSD-M", "2")], "gsd_m is '1, 2'. Send metres per pixel, 1e-06 to 10000"),
        ([("X-Plain", "x"), ("X-Height-M", "0")], "height_m is '0'. Send the height above ground in metres, 0"),
        ([("X-GSD-M", "0.02"), ("X-Height-M", "40")], "gsd_m and height_m are both given. Send one of them."),
    ],
)
def test_wrong_option_headers_are_refused(server: Server, headers: list[tuple[str, str]], message: str) -> None:
    headers = [*headers, ("Content-Type", "image/png")]
    response = httpx.post(f"{server.url}/predict_image_bytes", content=PHOTO, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
    assert message in response.json()["error"]["message"]


def test_misnamed_option_in_the_json_is_refused(server: Server) -> None:
    response = post(server, {"req": {"image_b64": encoded(PHOTO), "gsd": 0.02}})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
    assert response.json()["error"]["message"] == "gsd is not an option. Send gsd_m, in metres."


IN_PROCESS = """
import asyncio, base64, sys
from droneseg.serving.bentoml_service import DroneSegService
from droneseg.serving.request_body import Base64Image

async def main() -> None:
    service = DroneSegService()
    await service._loading
    image = Base64Image(image_b64=base64.b64encode(sys.stdin.buffer.read()).decode())
    print((await service.predict_base64(image)).prediction_shape)
    await service.stop()

asyncio.run(main())
"""


def test_predict_base64_works_without_http(server: Server, tmp_path: Path) -> None:
    settings = {"DRONESEG_MODEL": str(server.log.parent / "champion"), "DRONESEG_RECORDS_URL": "none"}
    environment = os.environ | settings | {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(tmp_path / "bentoml")}
    # in its own process: BentoML's warnings would be errors in this one
    command = [sys.executable, "-W", "ignore", "-c", IN_PROCESS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, input=PHOTO, capture_output=True)
    assert done.stdout.decode().strip() == "(40, 50)", done.stderr.decode()


UNUSABLE = [
    ({"req": {"image_b64": "!!! this is no base64 !!!"}}, 400, "malformed_request", "characters"),
    ({"req": {"image_b64": encoded(PHOTO) + "="}}, 400, "malformed_request", "padding"),
    ({"req": {"image_b64": encoded(PHOTO) + "===="}}, 400, "malformed_request", "padding"),
    ({"req": {"image_b64": encoded(PHOTO)[:-3]}}, 400, "malformed_request", "padding"),
    ({"req": {"image_b64": encoded(PHOTO) + "\n"}}, 400, "malformed_request", "characters"),
    ({"req": {"image_b64": f"data:image/png;base64,{encoded(PHOTO)}"}}, 400, "malformed_request", "characters"),
    ({"req": {"image_b64": "\u00e9" * 4}}, 400, "malformed_request", "base64"),
    ({"req": {"image_b64": ""}}, 400, "broken_image", "empty"),
    ({"req": {"image_b64": encoded(b"garbage")}}, 415, "unsupported_image", "Unknown image format"),
    ({"req": {"image_b64": encoded(PHOTO), "content_type": "text/plain"}}, 415, "wrong_content_type", "text/plain"),
    ({"req": {"image_b64": 5}}, 422, "invalid_request", "req.image_b64"),
    ({"req": {}}, 422, "invalid_request", "req.image_b64"),
    ({"req": {"image_b64": encoded(PHOTO), "gsd_m": 0}}, 422, "invalid_request", "req.gsd_m is '0'. Send metres per"),
    ({"req": {"image_b64": encoded(PHOTO), "gsd_m": "2 cm"}}, 422, "invalid_request", "req.gsd_m is '2 cm'. Send"),
    ({"req": {"image_b64": encoded(PHOTO), "gsd_m": True}}, 422, "invalid_request", "req.gsd_m is 'True'. Send"),
    ({"req": {"image_b64": encoded(PHOTO), "height_m": -4}}, 422, "invalid_request", "req.height_m is '-4'. Send"),
    ({"req": {"image_b64": encoded(PHOTO), "height_m": math.nan}}, 422, "invalid_request", "req.height_m is 'nan'."),
    ({"req": {"image_b64": encoded(PHOTO), "plain": 1}}, 422, "invalid_request", "req.plain is '1'. Send true or"),
    ({"req": {"image_b64": encoded(PHOTO), "gsd_m": 1, "height_m": 9}}, 422, "invalid_request", "both given"),
    ({"request": {"image_b64": encoded(PHOTO)}}, 422, "invalid_request", "req"),
    ({}, 422, "invalid_request", "req"),
    ([1, 2], 422, "invalid_request", "body"),
    (None, 422, "invalid_request", "body"),
    (b"", 400, "malformed_request", "JSON"),
    (b'{"req": {"image_b64": "', 400, "malformed_request", "JSON"),
    (b"[" * 100_000, 400, "malformed_request", "JSON"),
    (b"\xff\xfe\x00", 400, "malformed_request", "JSON"),
    (b'{"req": {"image_b64": "' + b"A" * 40_000_000 + b'"}}', 413, "request_too_large", "31,457,280"),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    UNUSABLE,
    ids=lambda value: None if isinstance(value, int) else str(value)[:40],
)
def test_invalid_body_returns_its_documented_error(
    server: Server, body: object, status: int, code: str, words: str
) -> None:
    response = post(server, body)
    result = response.json()
    assert (response.status_code, result["error"]["code"]) == (status, code)
    assert words in result["error"]["message"]
    assert set(result) == {"error"}


def test_documentation_lists_every_error() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| sent to `/predict_base64`")[2].partition("\n\n")[0]
    documented = {(int(status), code) for status, code in re.findall(r"\| (\d+) \| `(\w+)` \|", table)}
    assert documented == {(status, code) for _, status, code, _ in UNUSABLE}


def test_wrong_content_type_returns_415(server: Server) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle"):
        response = post(server, b"x", Content_Type=kind)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "wrong_content_type")
    response = httpx.post(f"{server.url}/predict_image_bytes", content=PHOTO, headers={"Content-Type": "text/html"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "wrong_content_type")


def test_model_info_ignores_its_request_body(server: Server) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle", "x"):
        response = httpx.post(f"{server.url}/model_info", content=b"a=b", headers={"Content-Type": kind})
        assert (response.status_code, response.json()["license"]) == (200, "Apache-2.0")


def test_similar_paths_return_404(server: Server) -> None:
    for path in (
        "predict_base64%0a",
        "predict_image_bytes%0A/",
        "model_info%0a",
        "static_content/",
        "static_content/index.css",
    ):
        response = httpx.post(f"{server.url}/{path}", content=PHOTO, headers={"Content-Type": "image/png"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert 'droneseg_faults_total{code="internal_error"} 0.0' in httpx.get(f"{server.url}/metrics").text


def test_bentoml_errors_use_the_shared_format(server: Server) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/predict_base64", 405, "method_not_allowed"),
    ):
        response = httpx.request(method, f"{server.url}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_documented_client_works_as_written(server: Server, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "PHOTO.png").write_bytes(PHOTO)
    script = script.replace("http://127.0.0.1:3000", server.url)
    # without BentoML's own warnings
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'landing-zones': 1.0" in done.stdout
    assert (read_mask(tmp_path / "mask.png", "ids", DEFAULT_CLASSES) == 5).all()


def test_documented_curl_commands_work_as_written(server: Server, tmp_path: Path) -> None:
    require_program("curl")
    (block,) = re.findall(r"```bash\n(echo .*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    result = run_in_shell(block, server, tmp_path)
    assert result.count('"classes_found":[5]') == 3
    assert result.count('"height_m":40.0') == 1
    assert '"license":"Apache-2.0"' in result


def test_readme_curl_command_works_as_written(server: Server, tmp_path: Path) -> None:
    require_program("curl")
    (line,) = re.findall(r"^curl .*127\.0\.0\.1:3000.*$", README.read_text(encoding="utf-8"), re.M)
    result = json.loads(run_in_shell(line, server, tmp_path))
    expected = post(server, {"req": {"image_b64": encoded(PHOTO)}}).json()
    assert result["segmentation_mask"] == expected["segmentation_mask"]


def run_in_shell(script: str, server: Server, folder: Path) -> str:
    (folder / "PHOTO.png").write_bytes(PHOTO)
    script = script.replace("http://127.0.0.1:3000", server.url).replace("curl ", "curl --fail --silent ")
    done = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_service_listens_only_on_the_configured_address(server: Server) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    addresses = [
        link.laddr for process in processes for link in process.net_connections("inet") if link.status == "LISTEN"
    ]
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}
    assert int(server.url.rpartition(":")[2]) in {port for _, port in addresses}


def test_root_returns_status_with_working_links(server: Server) -> None:
    response = httpx.get(f"{server.url}/", headers={"Accept": "text/html"})
    result = response.json()
    assert (result["service"], result["ready"]) == ("droneseg", True)
    for link in result["links"].values():
        assert httpx.get(f"{server.url}{link}").status_code == 200


def test_deeply_nested_json_is_rejected_without_parsing(server: Server) -> None:
    before = server.memory_mb
    response = post(server, b'{"req": [' + b"[0]," * 7_000_000 + b"[0]]}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_request")
    assert server.memory_mb - before < 150


@pytest.mark.parametrize(
    ("name", "value"),
    [("DRONESEG_RECORDS_URL", "nowhere://x"), ("DRONESEG_PORT", "abc"), ("DRONESEG_HOST", "localhost")],
)
def test_service_does_not_start_with_invalid_setting(tmp_path: Path, name: str, value: str) -> None:
    environment = os.environ | {name: value, "BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(BENTO.command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_service_without_model_is_alive_but_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, backend=BENTO, ready=False, model=tmp_path / "nowhere", dvc_pull="never") as server:
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        for response in (
            httpx.get(f"{server.url}/readyz"),
            httpx.post(f"{server.url}/model_info"),
            post(server, {"req": {"image_b64": encoded(PHOTO)}}),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
