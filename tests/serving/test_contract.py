"""Both backends return the same masks, byte for byte, and the same statuses, error codes and messages."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from support.bundles import make_bundle
from support.hostile import OK, Hostile, corpus
from support.server import BENTO, BENTO_BASE64, FASTAPI, Server, serving

API_KEY = "open sesame"
KEY = {"X-API-Key": API_KEY}
WAYS = ("bento", "bento-base64")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    champion = tmp_path_factory.mktemp("model") / "champion"
    make_bundle(champion, patch=(64, 64))
    options = {"model": champion, "api_key": API_KEY, "queue_seconds": 60}
    with (
        serving(tmp_path_factory.mktemp("fastapi"), backend=FASTAPI, **options) as fastapi,
        serving(tmp_path_factory.mktemp("bento"), backend=BENTO, **options) as bento,
    ):
        yield {"fastapi": fastapi, "bento": bento, "bento-base64": replace(bento, backend=BENTO_BASE64)}


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
