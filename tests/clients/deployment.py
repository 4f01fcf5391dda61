"""Runs `disagg up` for tests of clients: with its own home folder, on a free port, until the tests end."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Random weights: answers do not repeat themselves and are as long as they may be.
FILE = pathlib.Path(__file__).with_name("deployment.yaml")
READY_S = 90
END_S = 20


def executable():
    """`DISAGG_BIN`, or the executable that `make build` built."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = pathlib.Path(os.environ.get("DISAGG_BIN", target / "ci/disagg"))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `make build` makes it, DISAGG_BIN names another")
    return path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Deployment:
    """`disagg up` with these arguments; a context manager. `url` is its URL, `MODEL` its model."""

    MODEL = "demo"

    def __init__(self, *arguments, **variables):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="disagg-clients-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.out, self.log = self.home / "out", self.home / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DISAGG_")}
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            environment.pop(name, None)
        environment |= {"HOME": str(self.home)} | variables
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [executable(), "up", "-f", FILE, "--port", str(port), *arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            )

    def __enter__(self):
        deadline = time.monotonic() + READY_S
        while "Ctrl-C" not in self.out.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = self.log.read_text()
                self.__exit__()
                raise RuntimeError(f"`disagg up` is not ready:\n{log}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)
