"""FastAPI server process: documented curl commands and reload under load."""

import shlex
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from support.bundles import make_bundle
from support.images import png
from support.programs import require_program
from support.server import Server, serving
from support.waiting import HANG_S, wait_until
from support.workspace import COMMAND

KEY = {"X-API-Key": "open sesame"}
LARGE = png(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder / "champion", patch=(256, 256))
    with serving(folder, model=folder / "champion", api_key="open sesame") as server:
        yield server


def predicted_mask(server: Server, folder: Path) -> bytes:
    """Return the mask file that `droneseg predict` writes."""
    (folder / "a.png").write_bytes(LARGE)
    model = str(server.log.parent / "champion")
    command = [*COMMAND, "predict", "a.png", "--out", "masks", "--model", model]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "masks" / "a.png").read_bytes()


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_documented_curl_commands_work_as_written(server: Server, tmp_path: Path, page: str) -> None:
    curl = require_program("curl")
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    lines = [line.partition("  #")[0] for line in text.splitlines() if line.startswith("curl ")]
    lines = [line for line in lines if "127.0.0.1:8000" in line]  # the others are BentoML's
    assert lines
    for name in ("PHOTO.png", "A.jpg", "B.jpg"):
        (tmp_path / name).write_bytes(LARGE)
    for line in lines:
        # use the port and the API key of this test
        line = line.replace("http://127.0.0.1:8000", server.url)
        words = [curl, "--fail", "--silent", "--header", f"X-API-Key: {KEY['X-API-Key']}", *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        if "-o" in words:
            assert (tmp_path / "mask.png").read_bytes() == predicted_mask(server, tmp_path)
        else:
            assert (b'"decision"' if "landing_sites" in line else b"class_fractions") in done.stdout


def test_reload_under_load_loses_no_request(server: Server) -> None:
    champion = server.log.parent / "champion"
    statuses: list[int] = []
    ids: set[str] = set()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = server.predict(LARGE, **KEY)
            statuses.append(answer.status_code)
            ids.add(answer.json()["model_id"])

    with ThreadPoolExecutor(3) as pool:
        loading = [pool.submit(load) for _ in range(3)]
        try:
            wait_until(lambda: len(statuses) > 3)
            champion.rename(champion.with_name("old"))
            make_bundle(champion, patch=(256, 256))
            reload = httpx.post(f"{server.url}/admin/reload", headers=KEY, timeout=HANG_S)
            assert reload.json()["changed"] is True, reload.text
            wait_until(lambda: reload.json()["model_id"] in ids)
            network = champion / "model.onnx"
            network.write_bytes(network.read_bytes()[:-1] + b"!")
            refused = httpx.post(f"{server.url}/admin/reload", headers=KEY, timeout=HANG_S)
            assert refused.status_code == 409
            assert "model.onnx" in refused.json()["error"]["message"]
            seen = len(statuses)
            wait_until(lambda: len(statuses) > seen + 3)
        finally:
            stop.set()
        for future in loading:
            future.result()
    assert set(statuses) == {200}
    assert len(ids) == 2
