"""FastAPI application in the test process: fields, errors, limits, API key, metrics, reload."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from droneseg.core.camera import WARNING_MESSAGES, Ground, WarningCode, given_ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import BundleError, ConfigurationError, ImageTooLargeError
from droneseg.core.masks import encode_mask
from droneseg.core.prediction import Prediction
from droneseg.core.settings import Settings
from droneseg.inference.landing import LandingAnswer, NoSiteReason
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.monitoring.prometheus import ServiceMetrics
from droneseg.serving.app import create_app
from droneseg.serving.middleware import RequestMiddleware
from droneseg.serving.schemas import PredictionOptions, Upload
from droneseg.serving.service import PredictionService, count_tiles
from support.bundles import TRAINED_AT, VIEWS, make_bundle
from support.hostile import Hostile, corpus
from support.images import png
from support.segmenters import BrightIsLanding
from support.waiting import HANG_S, wait_until

Start = Callable[..., TestClient]
MASK = np.repeat(np.array([[5, 2]], np.uint8), 6, axis=0).repeat(4, axis=1)  # left half bright, right half dark
PHOTO = png(np.where(MASK[..., None] == 5, 200, 20).repeat(3, axis=2).astype(np.uint8))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start applications with given settings."""
    started = []

    def start_client(segmenter: object = None, **settings: object) -> TestClient:
        app_settings = Settings(_env_file=None, records_url=str(tmp_path / "records"), **settings)
        client = TestClient(create_app(app_settings, segmenter or BrightIsLanding()), raise_server_exceptions=False)
        started.append(client.__enter__())
        wait_until(lambda: client.get("/readyz").status_code == 200)
        return client

    yield start_client
    for client in started:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start: Start) -> TestClient:
    return start()


def file(data: bytes = PHOTO, name: str = "a.png") -> tuple[str, tuple[str, bytes]]:
    return ("data", (name, data))


def error(response: object) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]  # type: ignore[attr-defined]


def test_predict_returns_every_field(client: TestClient) -> None:
    response = client.post("/predict", files=[file()])
    assert response.status_code == 200
    result = response.json()
    assert base64.b64decode(result["segmentation_mask"]) == encode_mask(MASK, DEFAULT_CLASSES)
    assert (result["filename"], result["prediction_shape"], result["classes_found"]) == ("a.png", [6, 8], [2, 5])
    assert result["class_fractions"]["water"] == result["class_fractions"]["landing-zones"] == 0.5
    assert set(result["timings_s"]) == {"queue", "decode", "network", "encode"}
    assert (result["confidence"], result["model_id"]) == (0.9, "aaa")
    assert result["ground"]["source"] == "unknown"
    assert result["warnings"] == []  # the segmenter adds them


def test_predict_returns_mask_file_for_accept_png(client: TestClient) -> None:
    response = client.post("/predict", files=[file()], headers={"Accept": "image/png"})
    assert (response.content, response.headers["content-type"]) == (encode_mask(MASK, DEFAULT_CLASSES), "image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), MASK)


def test_mask_none_omits_the_mask(client: TestClient) -> None:
    assert "segmentation_mask" not in client.post("/predict?mask=none", files=[file()]).json()
    assert "segmentation_mask" not in client.post("/batch_predict?mask=none", files=[file()]).json()[0]
    assert error(client.post("/predict?mask=all", files=[file()])) == (422, "invalid_request")


def test_options_reach_the_segmenter_and_the_response(start: Start) -> None:
    segmenter = BrightIsLanding()
    client = start(segmenter)
    result = client.post("/predict", files=[file()], data={"gsd_m": " 0.02 ", "plain": "true", "height_m": ""}).json()
    assert (result["ground"]["gsd_m"], result["ground"]["source"]) == (0.02, "argument")
    assert result["warnings"] == []
    assert segmenter.plain[-1]
    assert client.post("/predict", files=[file()]).json()["ground"]["gsd_m"] is None
    assert not segmenter.plain[-1]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"gsd_m": "0.02"}, [0.02, 0.02]),
        ({"gsd_m": ["0.02", "0.03"]}, [0.02, 0.03]),
        ({"gsd_m": ["", "0.03"]}, [None, 0.03]),
        ({}, [None, None]),
    ],
)
def test_batch_takes_one_scale_for_all_files_or_one_per_file(
    client: TestClient, sent: dict[str, object], expected: list[float | None]
) -> None:
    items = client.post("/batch_predict", files=[file(), file()], data=sent).json()
    assert [item["ground"]["gsd_m"] for item in items] == expected


GSD = "Send metres per pixel, 1e-06 to 10000, for example 0.025."
WRONG_COUNT = "3 values for 2 files. Send one for all, or one per file."
HEIGHT = "Send the height above ground in metres, 0.001 to 100000, for example 40."


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        *(
            ({"gsd_m": text}, f"gsd_m is {text!r}. {GSD}")
            for text in ("nan", "inf", "-inf", "0", "-1", "2 cm", "1e999", "5e-324", "1e9")
        ),
        ({"height_m": "0"}, f"height_m is '0'. {HEIGHT}"),
        ({"plain": "maybe"}, "plain is 'maybe'. Send true or false."),
        ({"gsd_m": "x" * 99}, f"gsd_m is '{40 * 'x'}'. {GSD}"),
        ({"gsd_m": "x", "height_m": "y"}, f"gsd_m is 'x'. {GSD} height_m is 'y'. {HEIGHT}"),
        ({"gsd_m": "0.02", "height_m": "40"}, "gsd_m and height_m are both given. Send one of them."),
        ({"gsd": "0.02"}, "gsd is not an option. Send gsd_m, in metres."),
        ({"height": "40"}, "height is not an option. Send height_m, in metres."),
        (
            {"gsd_m": ["1", "2", "3"], "height_m": ["1", "2", "3"], "plain": "x"},
            f"gsd_m has {WRONG_COUNT} height_m has {WRONG_COUNT} plain is 'x'. Send true or false.",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_refused_with_all_problems(client: TestClient, sent: dict[str, object], message: str) -> None:
    response = client.post("/batch_predict", files=[file(), file()], data=sent)
    assert error(response) == (422, "invalid_request")
    assert response.json()["error"]["message"] == message


def test_option_sent_as_a_file_is_refused(client: TestClient) -> None:
    response = client.post("/predict", files=[file(), ("gsd_m", ("gsd.txt", b"0.02"))])
    assert error(response) == (422, "invalid_request")
    assert "gsd_m is 'file gsd.txt'." in response.text


def test_every_file_of_the_largest_batch_may_have_its_own_options(start: Start) -> None:
    client = start(max_batch=40)
    sent = {"gsd_m": ["0.02"] * 20 + [""] * 20, "height_m": [""] * 20 + ["40"] * 20, "plain": ["true"] * 40}
    response = client.post("/batch_predict?mask=none", files=[file()] * 40, data=sent)
    assert response.status_code == 200, response.text
    assert len(response.json()) == 40


def test_warnings_are_in_every_response_and_counted(start: Start) -> None:
    class Warns(BrightIsLanding):
        def segment(self, image: np.ndarray, *args: object, **options: object) -> Prediction:  # type: ignore[override]
            codes = (WarningCode.UNKNOWN_SCALE, WarningCode.OBLIQUE)
            return replace(super().segment(image), ground=Ground(warnings=codes))

    client = start(Warns())
    result = client.post("/predict", files=[file()]).json()
    assert result["ground"]["warnings"] == ["unknown_scale", "oblique"]
    assert [(item["code"], item["message"]) for item in result["warnings"]] == [
        (code, WARNING_MESSAGES[code]) for code in (WarningCode.UNKNOWN_SCALE, WarningCode.OBLIQUE)
    ]
    (item,) = client.post("/batch_predict", files=[file()]).json()
    assert item["warnings"] == result["warnings"]
    mask_file = client.post("/predict", files=[file()], headers={"Accept": "image/png"})
    assert mask_file.headers["x-warnings"] == "unknown_scale,oblique"
    lines = client.get("/metrics").text.splitlines()
    assert 'droneseg_prediction_warnings_total{code="unknown_scale"} 3.0' in lines
    assert 'droneseg_prediction_warnings_total{code="finer_than_trained"} 0.0' in lines


def test_queue_size_is_the_number_of_tiles_of_the_planned_views(tmp_path: Path) -> None:
    segmenter = BundleSegmenter(make_bundle(tmp_path / "bundle", patch=(64, 64), ground=TRAINED_AT, context=VIEWS))
    large = png(np.full((640, 640, 3), 200, np.uint8))

    def size(**options: object) -> int:
        upload = Upload("a.png", large, PredictionOptions(**options))  # type: ignore[arg-type]
        return count_tiles(upload, given_ground(upload.options.gsd_m), segmenter, 500_000)

    assert size(plain=True) == 19 * 19
    assert size(gsd_m=0.025) > 19 * 19  # and the whole image
    assert size(gsd_m=0.025) > size(gsd_m=0.0125) > 9 * 9 > size()
    strip = Upload("a.png", png(np.full((1, 400_000, 3), 200, np.uint8)), PredictionOptions(gsd_m=0.025))
    with pytest.raises(ImageTooLargeError, match=r"Image is 400000x1 and needs \d+,\d{3} tiles; the limit is 1,\d{3}"):
        count_tiles(strip, given_ground(0.025), segmenter, 500_000)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/model_info", "/metrics", "/ui", "/docs"])
def test_trailing_slash_is_ignored(client: TestClient, path: str) -> None:
    plain, slashed = (client.get(p, follow_redirects=False) for p in (path, path + "/"))
    assert plain.status_code == slashed.status_code == 200
    assert path == "/metrics" or plain.content == slashed.content
    assert client.post("/predict/", files=[file()], follow_redirects=False).status_code == 200


def test_invalid_batch_file_does_not_affect_the_others(client: TestClient) -> None:
    response = client.post("/batch_predict", files=[file(), file(b"junk", "b.png"), file(PHOTO[:60], "c.png"), file()])
    assert response.status_code == 200
    first, bad, cut, last = response.json()
    assert first["prediction_shape"] == last["prediction_shape"] == [6, 8]
    assert (bad["filename"], bad["error"]["code"]) == ("b.png", "unsupported_image")
    assert (cut["filename"], cut["error"]["code"]) == ("c.png", "broken_image")


def test_invalid_body_returns_its_documented_error(start: Start) -> None:
    client = start(max_batch=3)
    assert error(client.post("/predict", content=b"x")) == (415, "wrong_content_type")
    assert error(client.post("/predict", json={"data": "x"})) == (415, "wrong_content_type")
    assert error(client.post("/predict", files=[("image", ("a.png", PHOTO))])) == (422, "invalid_request")
    assert error(client.post("/predict", data={"data": "x"}, files=[("other", ("", b""))])) == (422, "invalid_request")
    assert error(client.post("/predict", files=[file(), file()])) == (422, "invalid_request")
    assert error(client.post("/batch_predict", files=[file()] * 4)) == (413, "too_many_files")
    assert error(client.post("/batch_predict", files=[file()] * 200)) == (413, "too_many_files")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert error(client.post("/predict", content=b"--y\r\n", headers=broken)) == (400, "malformed_request")
    assert error(client.post("/predict", content=b"", headers={"Content-Type": "multipart/form-data"})) == (
        400,
        "malformed_request",
    )


def test_truncated_multipart_body_is_rejected(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n' + PHOTO + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/batch_predict", content=2 * part + b"--x--\r\n", headers=headers).status_code == 200
    for cut in (2 * part, 2 * part[:-10], part + b"--x", part[:40]):
        assert error(client.post("/batch_predict", content=cut, headers=headers)) == (400, "malformed_request")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-7", "unicode_escape", "utf-16", "nonsense"])
def test_charset_of_content_type_is_ignored(client: TestClient, charset: str) -> None:
    name = "garden +2AA- \\ud800.png"
    part = f'--x\r\nContent-Disposition: form-data; name="data"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    response = client.post("/predict", content=part + PHOTO + b"\r\n--x--\r\n", headers=headers)
    assert (response.status_code, response.json()["filename"]) == (200, name)


def test_too_large_body_returns_413_with_and_without_content_length(start: Start) -> None:
    client = start(max_upload_bytes=2000)
    assert error(client.post("/predict", files=[file(bytes(3000))])) == (413, "request_too_large")

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n\r\n'
        for _ in range(1000):
            yield bytes(1000)

    response = client.post("/predict", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert error(response) == (413, "request_too_large")
    assert client.post("/predict", files=[file()]).status_code == 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns before it fails
@pytest.mark.parametrize("hostile", corpus(), ids=lambda hostile: hostile.name)
def test_hostile_file_returns_its_documented_response(shared: TestClient, hostile: Hostile) -> None:
    response = shared.post("/predict", files=[file(hostile.data)])
    result = (response.status_code, "" if response.status_code == 200 else response.json()["error"]["code"])
    assert result == hostile.answer, response.text[:300]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One application for the whole corpus; it must still predict afterwards."""
    settings = Settings(_env_file=None, records_url=str(tmp_path_factory.mktemp("records")))
    with TestClient(create_app(settings, BrightIsLanding())) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client
        assert client.post("/predict", files=[file()]).status_code == 200


def test_corpus_has_enough_files_with_unique_names() -> None:
    names = [hostile.name for hostile in corpus()]
    assert len(names) == len(set(names)) >= 60


def test_unsupported_records_url_is_rejected_at_start() -> None:
    for url in ("s4://x/y", "nonsense://x"):
        with pytest.raises(ConfigurationError, match="DRONESEG_RECORDS_URL="):
            create_app(Settings(_env_file=None, records_url=url), BrightIsLanding())


def test_service_without_model_returns_503(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, model=tmp_path / "nowhere", records_url="none")
    with TestClient(create_app(settings)) as client:
        assert client.get("/livez").status_code == 200
        for method, path in (
            ("GET", "/readyz"),
            ("GET", "/model_info"),
            ("POST", "/predict"),
            ("POST", "/batch_predict"),
        ):
            response = client.request(method, path, files=[file()] if method == "POST" else None)
            assert error(response) == (503, "not_ready")
        status = client.get("/").json()
        assert (status["ready"], status["model_id"]) == (False, None)


def test_failing_model_returns_500_without_internal_details(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Fails(BrightIsLanding):
        def segment(self, image: np.ndarray, *args: object, **options: object) -> object:  # type: ignore[override]
            if self.calls >= 2:
                raise RuntimeError("secret inside")
            return super().segment(image, *args, **options)  # type: ignore[arg-type]

    client = start(Fails())
    response = client.post("/predict", files=[file()])
    assert error(response) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    assert "secret inside" in caplog.text
    (item,) = client.post("/batch_predict", files=[file()]).json()
    assert item["error"]["code"] == "internal_error"
    assert 'droneseg_faults_total{code="internal_error"} 2.0' in client.get("/metrics").text


def test_framework_errors_use_the_shared_format(client: TestClient) -> None:
    assert error(client.get("/nowhere")) == (404, "not_found")
    assert error(client.get("/predict")) == (405, "method_not_allowed")


def test_request_cancelled_at_shutdown_returns_503() -> None:
    async def endless(_scope: object, _receive: object, _send: object) -> None:
        await asyncio.sleep(60)

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def scenario() -> None:
        settings, metrics = Settings(_env_file=None), ServiceMetrics()
        failed = PredictionService(settings, BrightIsLanding, metrics).error_detail
        middleware = RequestMiddleware(
            endless, settings=settings, metrics=metrics, error_detail=failed, known_paths=(), public_paths=()
        )
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        task = asyncio.create_task(middleware(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(scenario())
    assert sent[0]["status"] == 503
    assert b"not_ready" in sent[1]["body"]  # type: ignore[operator]


def test_valid_request_id_is_kept_and_invalid_one_replaced(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "flight-7"}).headers["x-request-id"] == "flight-7"
    assert len(client.get("/livez", headers={"X-Request-ID": "a b" * 99}).headers["x-request-id"]) == 32


def test_api_key_is_required_except_for_public_paths(start: Start) -> None:
    client = start(api_key="open sesame")
    for path in ("/", "/livez", "/readyz", "/ui", "/ui/page.js", "/docs", "/openapi.json", "/metrics"):
        assert client.get(path).status_code == 200, path
    for path in ("/model_info", "/nowhere"):
        assert error(client.get(path)) == (401, "unauthorized")
    assert error(client.post("/predict", files=[file()])) == (401, "unauthorized")
    assert error(client.post("/predict", files=[file()], headers={"X-API-Key": "open sesam"})) == (401, "unauthorized")
    assert client.post("/predict", files=[file()], headers={"X-API-Key": "open sesame"}).status_code == 200
    for scheme in ("Bearer", "bearer"):
        assert client.get("/model_info", headers={"Authorization": f"{scheme} open sesame"}).status_code == 200
    assert error(client.get("/model_info", headers={"Authorization": "Basic open sesame"})) == (401, "unauthorized")
    private = start(api_key="open sesame", public_metrics=False)
    assert error(private.get("/metrics")) == (401, "unauthorized")


def test_metrics_of_landing_decisions_start_at_zero(client: TestClient) -> None:
    text = client.get("/metrics").text
    assert 'droneseg_landing_decisions_total{decision="site",reason=""} 0.0' in text
    for reason in NoSiteReason:
        assert f'droneseg_landing_decisions_total{{decision="no_safe_site",reason="{reason}"}} 0.0' in text


def test_metrics_count_requests_with_a_fixed_set_of_labels(client: TestClient) -> None:
    client.post("/predict", files=[file()])
    client.post("/predict", files=[file(b"junk")])
    for number in range(5):
        client.get(f"/nowhere/{number}")
    text = client.get("/metrics").text
    for line in (
        'droneseg_requests_total{endpoint="/predict",status="200"} 1.0',
        'droneseg_requests_total{endpoint="/predict",status="415"} 1.0',
        'droneseg_requests_total{endpoint="other",status="404"} 5.0',
        'droneseg_bad_inputs_total{reason="unsupported_image"} 1.0',
        "droneseg_images_total 1.0",
        "droneseg_pixels_total 48.0",
        'droneseg_stage_seconds_count{stage="network"} 1.0',
        'droneseg_model_info{model_id="aaa",profile="exact"} 1.0',
        "droneseg_queue_images 0.0",
        'droneseg_class_share_sum{class_name="water"} 0.5',
    ):
        assert line in text.splitlines()
    assert "nowhere" not in text
    assert "process_resident_memory_bytes" in text
    opened = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")
    odd = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=abc"})
    assert odd.status_code == 200


def test_request_duration_includes_the_prediction(start: Start) -> None:
    class Slow(BrightIsLanding):
        def segment(self, image: np.ndarray, *args: object, **options: object) -> object:  # type: ignore[override]
            if self.calls >= 2:
                time.sleep(0.3)
            return super().segment(image, *args, **options)  # type: ignore[arg-type]

    client = start(Slow())
    client.post("/predict", files=[file()])
    lines = client.get("/metrics").text.splitlines()
    (total,) = [line for line in lines if line.startswith('droneseg_request_seconds_sum{endpoint="/predict"}')]
    assert float(total.split()[1]) > 0.3


def test_queue_full_returns_429_before_the_body_is_read(start: Start) -> None:
    segmenter = BrightIsLanding()
    client = start(segmenter, queue_seconds=1e-6)
    segmenter.gate.clear()
    held = client.app.state.service.submit([_upload()] * 3)  # type: ignore[attr-defined]
    response = client.post("/predict", content=b"not even multipart")
    assert error(response) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    segmenter.gate.set()
    assert all(future.result(HANG_S) for future in held)
    assert "droneseg_bad_inputs_total{" not in client.get("/metrics").text  # the request itself was valid


def test_queue_timeout_returns_504(start: Start) -> None:
    segmenter = BrightIsLanding()
    client = start(segmenter, timeout_seconds=0.3)
    segmenter.gate.clear()
    held = client.app.state.service.submit([_upload()] * 2)  # type: ignore[attr-defined]
    calls = segmenter.calls
    response = client.post("/predict", files=[file()])
    assert error(response) == (504, "too_late")
    segmenter.gate.set()
    assert all(future.result(HANG_S) for future in held)
    assert segmenter.calls <= calls + 2


def test_reload_activates_new_model_or_keeps_current_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [BrightIsLanding("one")]

    def load(_settings: Settings) -> BrightIsLanding:
        if models[-1] is None:
            raise BundleError("model.onnx does not have the bytes the manifest names")
        if models[-1] == "surprise":
            raise PermissionError("secret path")
        return models[-1]

    monkeypatch.setattr("droneseg.serving.app.load_segmenter", load)
    key = {"X-API-Key": "open sesame"}
    with TestClient(create_app(Settings(_env_file=None, api_key="open sesame", records_url="none"))) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/admin/reload", headers=key).json() == {"model_id": "one", "changed": False}
        models.append(BrightIsLanding("two"))
        assert client.post("/admin/reload", headers=key).json() == {"model_id": "two", "changed": True}
        models.append(None)  # type: ignore[arg-type]
        refused = client.post("/admin/reload", headers=key)
        assert error(refused) == (409, "model_refused")
        assert "model.onnx does not have" in refused.text
        models.append("surprise")  # type: ignore[arg-type]
        refused = client.post("/admin/reload", headers=key)
        assert error(refused) == (409, "model_refused")
        assert "PermissionError" in refused.text
        assert "secret" not in refused.text
        assert client.post("/predict", files=[file()], headers=key).json()["model_id"] == "two"
        metrics_text = client.get("/metrics").text
        assert 'droneseg_model_info{model_id="two",profile="exact"} 1.0' in metrics_text
        assert 'droneseg_model_info{model_id="one",profile="exact"} 0.0' in metrics_text
    assert reload_is_absent_without_key()


def reload_is_absent_without_key() -> bool:
    """Return whether `/admin/reload` does not exist without an API key."""
    with TestClient(create_app(Settings(_env_file=None, records_url="none"), BrightIsLanding())) as client:
        return client.post("/admin/reload").status_code == 404


def test_model_info_has_licence_and_classes(client: TestClient) -> None:
    result = client.get("/model_info").json()
    assert result["license"] == "Apache-2.0"
    assert [entry["name"] for entry in result["classes"]][5] == "landing-zones"
    assert set(result) >= {"name", "version", "description", "input_shape", "output_shape", "framework", "quality"}


def test_each_prediction_writes_a_record(start: Start, tmp_path: Path) -> None:
    client = start()
    client.post("/batch_predict", files=[file(), file(b"junk"), file(PHOTO, "b.png")])

    def records() -> list[str]:
        return [line for path in (tmp_path / "records").rglob("*.jsonl") for line in path.read_text().splitlines()]

    wait_until(lambda: len(records()) >= 2)
    assert [json.loads(line)["model_id"] for line in records()] == ["aaa", "aaa"]


def test_browser_is_redirected_to_web_page(client: TestClient) -> None:
    sent = client.get("/", headers={"Accept": "text/html,*/*"}, follow_redirects=False)
    assert (sent.status_code, sent.headers["location"]) == (307, "/ui")
    page = client.get("/ui")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")


def test_openapi_has_an_example_for_every_response(client: TestClient) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                for content in response["content"].values():
                    assert {"example", "examples"} & set(content) or "binary" in str(content), (path, status)


def test_openapi_has_an_example_for_every_error(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path, statuses in (
        ("/predict", {400, 401, 408, 413, 415, 422, 429, 500, 503, 504}),
        ("/model_info", {401, 503}),
    ):
        (operation,) = described["paths"][path].values()
        assert statuses <= {int(status) for status in operation["responses"]}
        for status in statuses:
            examples = operation["responses"][str(status)]["content"]["application/json"]["examples"]
            assert all(set(example["value"]["error"]) == {"code", "message"} for example in examples.values())


def test_openapi_has_complete_examples_of_landing_sites(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/landing_sites"]["post"]
    examples = operation["responses"]["200"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = LandingAnswer.model_validate(example["value"])
        assert answer.model_dump(mode="json") == example["value"]


def test_openapi_declares_the_api_key_where_it_is_required(start: Start, client: TestClient) -> None:
    described = start(api_key="open sesame").get("/openapi.json").json()
    assert set(described["components"]["securitySchemes"]) == {"APIKeyHeader", "HTTPBearer"}
    assert described["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "X-API-Key"
    protected = {path for path, methods in described["paths"].items() for one in methods.values() if "security" in one}
    assert protected == {"/predict", "/batch_predict", "/landing_sites", "/model_info", "/drift", "/admin/reload"}
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def _upload() -> Upload:
    return Upload("a.png", PHOTO)
