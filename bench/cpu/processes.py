"""Starts and stops workers and a router for the scripts beside it. Standard library only."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
READY_MAX_S = 120


class Deployment:
    """A folder for logs and the model, and processes that are killed when the context ends."""

    def __init__(self, disagg):
        self.disagg = os.path.abspath(disagg)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="disagg-bench-"))
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()
        if kind is not None and kind is not KeyboardInterrupt:
            for log in sorted(self.folder.glob("*.log")):
                print(f"== {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def model(self, **shape):
        """The demo model's tokenizer and template with another shape; weights are not needed."""
        folder = self.folder / "bench"
        folder.mkdir()
        source = ROOT / "models" / "disagg-tiny"
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            shutil.copy(source / name, folder)
        config = json.loads((source / "config.json").read_text())
        config.update(max_position_embeddings=131072, **shape)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def start(self, name, *arguments):
        log = open(self.folder / f"{name}.log", "wb")
        child = subprocess.Popen([self.disagg, *map(str, arguments)], stdout=log, stderr=log)
        self.children.append(child)
        return child

    def worker(self, role, port, device, *arguments):
        return self.start(
            role, "worker", "--model", self.folder / "bench", "--load-format", "dummy", "--role", role,
            "--listen", f"127.0.0.1:{port}", "--device", device, *arguments)

    def router(self, port, *workers):
        named = [argument for worker in workers for argument in ("--worker", f"127.0.0.1:{worker}")]
        child = self.start("router", "router", *named, "--listen", f"127.0.0.1:{port}")
        until = time.monotonic() + READY_MAX_S
        while True:
            if any(each.poll() is not None for each in self.children):
                raise RuntimeError("a process has ended")
            status = get(port + 1, "/internal/workers")
            if status is not None and status.count(b'"ready"') >= len(workers):
                return child
            if time.monotonic() > until:
                raise RuntimeError(f"not ready within {READY_MAX_S} s: {status}")
            time.sleep(0.05)


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.read()
    except OSError:
        return None


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def cpu_seconds(process):
    """CPU time so far, including that of threads that have ended, in steps of 10 ms."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine():
    model = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return f"{os.cpu_count()} cores, {model}"
