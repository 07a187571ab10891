"""Commands in processes that are forked from one with the third-party libraries imported.

Importing torch, nnU-Net's dependencies or DVC takes seconds, and the tests run hundreds of commands. A forked process
has its own working directory, environment, streams and exit code, and imports droneseg itself. Tests that depend on
how a process starts, on its environment at import, or on signals start it with `subprocess`. Systems other than Linux
start a new interpreter for every command, since forking after such imports is not safe there.
"""

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

# none of them reads a variable that droneseg or a test sets; wandb is missing, since the first process to end would
# delete the temporary folder that it creates at import
_LIBRARIES = (
    "numpy", "pydantic", "pydantic_settings", "typer", "rich.console", "rich.table", "rich.progress", "yaml",
    "PIL.Image", "fsspec", "torch", "torch._dynamo", "scipy.ndimage", "sklearn.model_selection", "pandas",
    "matplotlib.pyplot", "seaborn", "SimpleITK", "batchgenerators.dataloading.multi_threaded_augmenter",
    "batchgeneratorsv2.transforms.utils.compose", "dynamic_network_architectures.architectures.unet", "hydra", "onnx",
    "optuna", "networkx", "dvc.cli", "dvc.repo",
)  # fmt: skip
_CAN_FORK = sys.platform == "linux"
_REQUEST_BYTES = 1 << 17
_LOOK_S = 5  # how often the template looks for its test process


class _Template:
    """Process that is forked for every command; it ends with the test process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="droneseg-tests-")
        self.address = str(Path(self._folder.name, "requests"))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
            requests.bind(self.address)
            command = [sys.executable, "-W", "ignore", __file__, str(requests.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[requests.fileno()], env=environment)


_template: _Template | None = None
_lock = threading.Lock()


def _address() -> str:
    """Start the template process if it does not run, and return the address of its socket."""
    global _template
    with _lock:
        _template = _template or _Template()
    return _template.address


def run_forked(
    code: str, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run code in a forked process as `python -c` does, and return its exit code and output.

    Args:
        code: Python code.
        arguments: Arguments, which the code finds in `sys.argv[1:]`.
        folder: Working directory.
        environment: All environment variables.
        timeout_s: Seconds until the process is killed.

    Raises:
        subprocess.TimeoutExpired: If the process was killed.
    """
    if not _CAN_FORK:
        command = [*_interpreter(code), *arguments]
        return subprocess.run(
            command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    request = {"code": code, "arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
    with (
        Path(os.devnull).open("rb") as empty,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
        _fork(_address(), request, (empty.fileno(), out.fileno(), errors.fileno())) as replies,
    ):
        returncode = _wait(replies, [code, *arguments], timeout_s)
        return subprocess.CompletedProcess([code, *arguments], returncode, _text(out), _text(errors))


def forked_command(code: str) -> list[str]:
    """Return a command line that runs code in a forked process, for programs that start commands themselves."""
    return [sys.executable, "-E", "-S", __file__, _address(), code] if _CAN_FORK else _interpreter(code)


def _interpreter(code: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", code]


def _fork(address: str, request: Mapping[str, object], streams: Sequence[int]) -> socket.socket:
    """Request a forked process with these streams; return the socket that receives its id and its exit code."""
    replies, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
        requests.connect(address)
        socket.send_fds(requests, [json.dumps(request).encode()], [*streams, theirs.fileno()])
    return replies


def _wait(replies: socket.socket, command: list[str], timeout_s: float | None) -> int:
    pid = int(replies.recv(16))
    replies.settimeout(timeout_s)
    try:
        return int(replies.recv(16))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(command, timeout_s or 0) from None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _serve(requests: socket.socket) -> dict[str, object]:
    """Fork for every request as long as the test process runs; return the request, in the forked process only."""
    running: dict[int, socket.socket] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _report_ended(running))
    parent = os.getppid()
    requests.settimeout(_LOOK_S)
    while True:
        try:
            message, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        except TimeoutError:
            if os.getppid() != parent:
                raise SystemExit from None
            continue
        *streams, reply = files
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the process is among those that run
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            os.close(reply)
            _redirect(streams)
            request: dict[str, object] = json.loads(message)
            return request
        running[pid] = socket.socket(fileno=reply)
        running[pid].send(f"{pid:16}".encode())
        for stream in streams:
            os.close(stream)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _report_ended(running: dict[int, socket.socket]) -> None:
    """Send the exit code of each process that has ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as reply, suppress(OSError):
            reply.send(f"{os.waitstatus_to_exitcode(status):16}".encode())


def _redirect(files: Sequence[int]) -> None:
    for stream, file in enumerate(files):
        os.dup2(file, stream)
        os.close(file)


def _run(code: str, arguments: Sequence[str]) -> NoReturn:
    """Run code and end as the interpreter does, but without taking every library apart."""
    sys.argv = ["-c", *arguments]
    status: object = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:  # noqa: BLE001  # as at the top of any program
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        sys.stderr.write(f"{status}\n")
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _be_template(requests: int) -> NoReturn:
    for name in _LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy the memory of all libraries
    request = _serve(socket.socket(fileno=requests))
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]  # from JSON
    sys.path[0] = ""
    _run(request["code"], request["arguments"])  # type: ignore[arg-type]  # from JSON


def _be_command(address: str, code: str, *arguments: str) -> NoReturn:
    request = {"code": code, "arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with _fork(address, request, (0, 1, 2)) as replies:
        raise SystemExit(_wait(replies, [code], None))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _be_template(int(sys.argv[1]))
    _be_command(*sys.argv[1:])
