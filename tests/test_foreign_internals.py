"""Undocumented parts of other packages that droneseg relies on.

Each test names the module of droneseg and the internal. If a test fails after an upgrade, adapt that module to the new
version of the package, or keep the upper bound in pyproject.toml.
"""

import asyncio
import importlib
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from droneseg.model.dvc_remote import _OBJECTS, directory_hash
from droneseg.nnunet.paths import NnunetPaths, export_environment


async def app(scope: object, receive: object, send: object) -> None:
    """ASGI application that does nothing."""


def require(owner: object, *names: str, user: str) -> None:
    """Fail with the name of our module if an object lacks attributes."""
    missing = [name for name in names if not hasattr(owner, name)]
    assert not missing, f"{owner} has no {', '.join(missing)}, on which {user} relies"


@pytest.fixture(scope="module")
def nnunet_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        export_environment(NnunetPaths(folder, folder, folder))
        import nnunetv2.paths  # noqa: F401  # reads the environment


# DVC, used by droneseg.model.dvc_remote


def test_dvc_resolves_remotes_without_a_repository(tmp_path: Path) -> None:
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = models\n['remote \"models\"']\n    url = ../store\n")
    config = Config(str(tmp_path / ".dvc"))
    assert config["core"]["remote"] == "models"
    filesystem_class, options, path = get_cloud_fs(config, name="models")
    filesystem = filesystem_class(**options)
    assert Path(path) == tmp_path / "store"
    target = filesystem.join(path, "files")
    (tmp_path / "source").write_bytes(b"data")
    filesystem.makedirs(filesystem.parent(target), exist_ok=True)
    filesystem.put_file(str(tmp_path / "source"), target)
    assert filesystem.fs.info(target)["size"] == 4
    assert str(filesystem.unstrip_protocol(target)).endswith("/store/files")


def test_dvc_stores_objects_below_files_md5() -> None:
    from dvc.cachemgr import DEFAULT_ALGORITHM, CacheManager

    assert (CacheManager.FILES_DIR, DEFAULT_ALGORITHM) == _OBJECTS, "droneseg.model.dvc_remote._OBJECTS"


def test_dvc_hashes_a_directory_as_we_do() -> None:
    from dvc_data.hashfile.tree import Tree

    entries = [{"md5": f"{number:032x}", "relpath": f"bundle/{name}"} for number, name in enumerate("cab")]
    tree = Tree.from_list(entries)
    tree.digest()
    assert tree.hash_info.value == directory_hash(entries), "droneseg.model.dvc_remote.directory_hash"


def test_asynchronous_filesystems_have_coroutines_with_an_underscore() -> None:
    from fsspec.asyn import AsyncFileSystem, sync

    require(AsyncFileSystem, "_info", "_get_file", "loop", "async_impl", user="dvc_remote.call_with_idle_timeout")
    assert list(inspect.signature(sync).parameters)[:2] == ["loop", "func"]


# uvicorn, used by droneseg.serving.server


def test_uvicorn_protocol_has_the_callbacks_and_attributes_we_override() -> None:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    from droneseg.serving.server import LimitedHttpProtocol

    overridden = [name for name in vars(LimitedHttpProtocol) if not name.startswith("_")]
    require(HttpToolsProtocol, *overridden, user="droneseg.serving.server.LimitedHttpProtocol")
    loop = asyncio.new_event_loop()
    try:
        config = uvicorn.Config(app=app, log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        protocol = HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop)
        protocol.on_message_begin()
    finally:
        loop.close()
    require(protocol, "headers", "url", "cycle", "transport", "loop", user="LimitedHttpProtocol")
    source = inspect.getsource(RequestResponseCycle.__init__)
    for attribute in ("response_complete", "more_body"):
        assert f"self.{attribute} = " in source, f"cycle.{attribute}: LimitedHttpProtocol"


def test_uvicorn_installs_a_bound_method_as_signal_handler() -> None:
    import uvicorn

    config = uvicorn.Config(app=app, log_config=None)
    config.load()
    server = uvicorn.Server(config)
    with server.capture_signals():
        handler = signal.getsignal(signal.SIGTERM)
    assert getattr(handler, "__self__", None) is server, "droneseg.serving.server.configure_bentoml_server"
    names = ("http_protocol_class", "ws_protocol_class", "timeout_graceful_shutdown")
    require(config, *names, user="droneseg.serving.server.configure_bentoml_server")


# Starlette and python-multipart, used by droneseg.serving.request_body


def test_starlette_form_parser_has_the_methods_and_attributes_we_override() -> None:
    from starlette.datastructures import Headers
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def no_chunks():
        yield b""

    parser = MultiPartParser(Headers({"content-type": "multipart/form-data; boundary=x"}), no_chunks())
    names = ("parse", "on_part_end", "on_end", "stream", "items", "spool_max_size")
    require(parser, *names, user="droneseg.serving.request_body._FormParser")
    assert MultiPartException("reason").message == "reason", "droneseg.serving.request_body"


def test_python_multipart_calls_on_end_after_the_last_boundary() -> None:
    from starlette.datastructures import Headers
    from starlette.formparsers import MultiPartParser

    ends = []

    class Parser(MultiPartParser):
        def on_end(self) -> None:
            ends.append(len(self.items))

    async def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\nvalue\r\n--x--\r\n'

    asyncio.run(Parser(Headers({"content-type": "multipart/form-data; boundary=x"}), chunks()).parse())
    assert ends == [1], "droneseg.serving.request_body._FormParser detects a missing last boundary by on_end"


# BentoML, used by droneseg.serving.bentoml_service


@pytest.mark.filterwarnings("ignore")  # BentoML uses deprecated methods of pydantic
def test_bentoml_service_has_middleware_and_a_request_context() -> None:
    import bentoml

    @bentoml.service
    class Service:
        pass

    require(Service, "add_asgi_middleware", "context", user="droneseg.serving.bentoml_service.DroneSegService")
    Service.add_asgi_middleware(str)
    assert [middleware for middleware, _options in Service.middlewares] == [str]


@pytest.mark.filterwarnings("ignore")  # as above
def test_bentoml_serves_its_web_page_below_static_content() -> None:
    import _bentoml_impl.server.app

    source = inspect.getsource(_bentoml_impl.server.app)
    assert '"static_content"' in source, "droneseg.serving.bentoml_service._WEB_PAGE"


# Inference runtimes


def test_onnxruntime_errors_are_in_its_binding(tmp_path: Path) -> None:
    import onnxruntime as ort

    from droneseg.inference.runtimes.onnxruntime import _ERRORS

    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(_ERRORS) as caught:
        ort.InferenceSession(tmp_path / "broken.onnx", providers=["CPUExecutionProvider"])
    assert caught.type.__module__.endswith("onnxruntime_pybind11_state"), "droneseg.inference.runtimes.onnxruntime"


def test_openvino_and_nncf_replace_a_missing_telemetry_package() -> None:
    code = (
        "import sys\n"
        "from droneseg.core.system import no_telemetry\n"
        "with no_telemetry():\n"
        "    import openvino, nncf\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], f"droneseg.core.system.no_telemetry: {done.stderr[-500:]}"


# nnU-Net, used by droneseg.nnunet


@pytest.mark.parametrize(
    ("module", "names", "user"),
    [
        ("run.run_training", ["run_training", "get_trainer_from_args"], "training.run, training.timing"),
        ("configuration", ["default_num_processes"], "nnunet.preprocess"),
        (
            "experiment_planning.plan_and_preprocess_api",
            ["extract_fingerprints", "plan_experiments", "preprocess"],
            "nnunet.preprocess",
        ),
        (
            "experiment_planning.dataset_fingerprint.fingerprint_extractor",
            ["multiprocessing"],
            "nnunet.preprocess.threads_for_workers",
        ),
        (
            "preprocessing.preprocessors.default_preprocessor",
            ["multiprocessing"],
            "nnunet.preprocess.threads_for_workers",
        ),
        ("experiment_planning.experiment_planners.network_topology", ["get_pool_and_conv_props"], "nnunet.plans"),
        ("utilities.find_objects", ["recursive_find_trainer_class_by_name"], "nnunet.checkpoint"),
        ("utilities.label_handling.label_handling", ["determine_num_input_channels"], "nnunet.checkpoint"),
        ("utilities.plans_handling.plans_handler", ["PlansManager"], "nnunet.checkpoint"),
        ("imageio.natural_image_reader_writer", ["NaturalImage2DIO"], "nnunet.predictor"),
        ("inference.predict_from_raw_data", ["nnUNetPredictor"], "nnunet.predictor"),
    ],
)
@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_has_the_names_we_import(module: str, names: list[str], user: str) -> None:
    require(importlib.import_module(f"nnunetv2.{module}"), *names, user=f"droneseg.{user}")


@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_trainer_has_the_methods_we_override() -> None:
    from droneseg.nnunet.trainers.drone_seg_trainer import DroneSegTrainer, nnUNetTrainer

    overridden = [name for name, value in vars(DroneSegTrainer).items() if inspect.isfunction(value)]
    own = {
        *("_uses_bf16", "_precision", "_averaged", "_validate", "_run_epoch", "_from_rank_0", "_initialise"),
        *("_fit_weights", "_crop_loaders", "_prepare_cases", "_target_strides", "_normalised"),
        *("_load_teacher", "_normalisation", "_crop_size", "_taught"),
    }
    require(nnUNetTrainer, *(set(overridden) - own), user="droneseg.nnunet.trainers.drone_seg_trainer")
    source = inspect.getsource(nnUNetTrainer)
    for name in ("num_iterations_per_epoch", "oversample_foreground_percent", "inference_allowed_mirroring_axes"):
        assert f"self.{name}" in source, f"{name}: droneseg.nnunet.trainers.drone_seg_trainer"


@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_reads_the_environment_variables_we_set() -> None:
    import nnunetv2.configuration
    import nnunetv2.utilities.default_n_proc_DA
    import nnunetv2.utilities.find_objects

    for module, variable in (
        (nnunetv2.configuration, "nnUNet_def_n_proc"),
        (nnunetv2.utilities.default_n_proc_DA, "nnUNet_n_proc_DA"),
        (nnunetv2.utilities.find_objects, "nnUNet_extTrainer"),
    ):
        assert variable in inspect.getsource(module), f"{variable}: droneseg.nnunet.paths.export_environment"


@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_logger_has_the_series_we_read() -> None:
    from nnunetv2.training.logging import nnunet_logger

    source = inspect.getsource(nnunet_logger)
    for series in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "lrs"):
        assert series in source, f"{series}: droneseg.nnunet.callbacks.read_epochs"
    for series in ("epoch_start_timestamps", "epoch_end_timestamps"):
        assert series in source, f"{series}: droneseg.nnunet.optimization.Progress"


@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_loss_has_a_cross_entropy_with_weights() -> None:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss

    require(DC_and_CE_loss({}, {}).ce, "weight", user="droneseg.nnunet.optimization.set_class_weights")


@pytest.mark.usefixtures("nnunet_environment")
def test_nnunet_logger_has_the_methods_we_call_and_wrap() -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    user = "droneseg.nnunet.trainers.drone_seg_trainer"
    require(MetaLogger, "get_value", "log", "plot_progress_png", user=user)


# torch and NumPy, used by droneseg.nnunet


def test_torch_reports_bfloat16_instructions() -> None:
    import torch

    require(torch.cpu, "_is_avx512_bf16_supported", user="droneseg.nnunet.paths.cpu_has_bf16")
    require(torch.backends.cpu, "get_cpu_capability", user="droneseg.nnunet.paths.cpu_has_bf16")


def test_torch_compile_keeps_the_network_in_orig_mod() -> None:
    import torch

    network = torch.nn.Linear(1, 1)
    assert torch.compile(network)._orig_mod is network, "droneseg.nnunet.networks.unwrap"


def test_numpy_scalars_are_unpickled_by_multiarray_scalar() -> None:
    import numpy as np

    require(np._core.multiarray, "scalar", user="droneseg.nnunet.checkpoint.read_checkpoint")
    assert np.float64(1).__reduce__()[0] is np._core.multiarray.scalar


# Kaggle and Typer


def test_kaggle_client_asks_whether_a_download_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x")  # the package authenticates when it is imported
    from kaggle.api.kaggle_api_extended import KaggleApi

    names = list(inspect.signature(KaggleApi.download_needed).parameters)
    assert names == ["self", "response", "outfile", "quiet"], "droneseg.data.kaggle._make_client"
    assert "self.download_needed(response, outfile, quiet)" in inspect.getsource(KaggleApi.dataset_download_files)


def test_typer_group_formats_its_commands_by_a_method() -> None:
    from typer.core import TyperGroup

    require(TyperGroup(name="group"), "format_commands", "commands", user="droneseg.cli.main.SectionedGroup")
