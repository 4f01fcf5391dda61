"""What a worker does when its GPU fails: before it serves, in a step, and permanently.

    python3 bench/gpu/faults.py DISAGG      # DISAGG: an executable built with debug assertions, as profile `ci` has them

Before serving: with a share of memory that is too small, and with weights larger than the GPU, the worker must exit with an
error that names what to change. Two workers then share the GPU, and a third finds too little left. Then, during eight
streamed answers, `DISAGG_FAULT` (worker/src/cuda/backend/fault.rs) makes a step ask for more memory than there is, a kernel
write to an unmapped address, or the GPU hang. Each answer must end with exactly one error, the worker must exit by itself
with a status other than 0, and the router must refuse later requests. Exits with status 1 if one of these does not hold.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
WORKER, PROBES, ROUTER = "127.0.0.1:9310", "127.0.0.1:9311", "127.0.0.1:9312"
STREAMS = 8
READY_MAX, END_MAX = 120, 30
ENDS = 8
failed = []


def expect(what, good, shown=""):
    print(("ok   " if good else "FAIL ") + what + (f": {shown}" if shown else ""), flush=True)
    if not good:
        failed.append(what)


def worker(disagg, model, *more, fault=None, listen=WORKER, probes=PROBES):
    environment = dict(os.environ, RUST_LOG="info")
    if fault:
        environment["DISAGG_FAULT"] = fault
    command = [disagg, "worker", "--model", model, "--load-format", "dummy", "--role", "both", "--listen", listen,
               "--metrics-listen", probes, "--device", "cuda", "--max-model-len", "4096", *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def ready(process, address=ROUTER):
    deadline = time.monotonic() + READY_MAX
    while time.monotonic() < deadline and process.poll() is None:
        if get(f"http://{address}/ready") == 200:
            return True
        time.sleep(0.05)
    return False


def at_start(disagg, model, what, words, *more):
    process = worker(disagg, model, *more)
    try:
        text, _ = process.communicate(timeout=READY_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
    last = text.strip().splitlines()[-1] if text.strip() else ""
    expect(f"{what}: status other than 0", process.returncode not in (0, None, -9), str(process.returncode))
    expect(f"{what}: the error says {words}", all(word in text for word in words), last)
    expect(f"{what}: no panic", "panicked" not in text)


async def stream(number):
    """How many tokens, errors and ends one streamed answer had."""
    host, port = ROUTER.split(":")
    body = json.dumps({"model": "shape", "prompt": [number + 5] * 40, "max_tokens": 3000, "ignore_eos": True,
                       "temperature": 0, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                 b"connection: close\r\n" + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    status = (await reader.readline()).decode().strip()
    tokens, errors, done = 0, [], 0
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            done += 1
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                errors.append(event["error"].get("message", ""))
            else:
                tokens += 1
    writer.close()
    return status, tokens, errors, done


async def streams():
    return await asyncio.wait_for(asyncio.gather(*(stream(number) for number in range(STREAMS))), END_MAX)


def in_step(disagg, model, fault, words, *more):
    process = worker(disagg, model, *more, fault=fault)
    router = subprocess.Popen([disagg, "router", "--worker", WORKER, "--listen", ROUTER], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        expect(f"{fault}: serves at first", ready(process))
        answers = asyncio.run(streams())
        once = all(" 200 " in status + " " and tokens > 0 and len(errors) == 1 and done == 1
                   for status, tokens, errors, done in answers)
        expect(f"{fault}: every stream has tokens, then one error, then its end", once, str(answers[0]))
        expect(f"{fault}: each says why", all(words in "".join(errors) for _, _, errors, _ in answers) or not words)
        begun = time.monotonic()
        try:
            process.wait(END_MAX)
        except subprocess.TimeoutExpired:
            pass
        took = time.monotonic() - begun
        expect(f"{fault}: the worker ends with a status other than 0", process.poll() not in (None, 0),
               f"{process.poll()}, {took:.1f} s after the last stream")
        expect(f"{fault}: the worker answers no probe", get(f"http://{PROBES}/ready") != 200)
    finally:
        process.kill()
        router.kill()
        router.wait()
    text, _ = process.communicate()
    lines = [line for line in text.splitlines() if "ERROR" in line or "Error" in line]
    expect(f"{fault}: no panic", "panicked" not in text)
    expect(f"{fault}: it is logged", bool(lines), lines[0] if lines else text[-500:])
    expect(f"{fault}: the process says why it ended", "the engine has failed" in text, text.strip().splitlines()[-1])


def gpu_mib_used():
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    used, total = subprocess.check_output(query, text=True).splitlines()[0].split(",")
    return int(used), int(total)


def shares(disagg, model):
    """--gpu-memory-utilization is a share of the whole GPU for each process, whatever the others hold."""
    command = ["--gpu-memory-utilization"]
    first = worker(disagg, model, *command, "0.5")
    second = None
    try:
        expect("a worker with half of the GPU: ready", ready(first, PROBES))
        used, total = gpu_mib_used()
        expect("it holds about half", 0.45 < used / total < 0.55, f"{used} of {total} MiB")
        probes = "127.0.0.1:9321"
        second = worker(disagg, model, *command, "0.4", listen="127.0.0.1:9320", probes=probes)
        expect("another with 0.4 beside it: ready", ready(second, probes))
        used, total = gpu_mib_used()
        expect("both hold about 0.9", 0.85 < used / total < 0.95, f"{used} of {total} MiB")
        third = worker(disagg, model, *command, "0.9", listen="127.0.0.1:9330", probes="127.0.0.1:9331")
        text, _ = third.communicate(timeout=READY_MAX)
        last = text.strip().splitlines()[-1]
        words = ["held by other processes", "--gpu-memory-utilization 0.9", "End what else runs on this GPU"]
        expect("a third with 0.9: status other than 0", third.returncode not in (0, None, -9), str(third.returncode))
        expect(f"it says {words}", all(word in text for word in words), last)
    finally:
        for process in filter(None, (first, second)):
            process.terminate()
            process.communicate(timeout=END_MAX)


def told_to_end(disagg, model):
    """Several times, since a failure at process exit does not happen every time."""
    statuses = []
    for _ in range(ENDS):
        process = worker(disagg, model)
        try:
            if ready(process, PROBES):
                process.terminate()
            process.communicate(timeout=END_MAX)
        finally:
            process.kill()
        statuses.append(process.wait())
    expect(f"SIGTERM, {ENDS} times: status 0", statuses == [0] * ENDS, str(statuses))


def main():
    disagg = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        model, whole, large = (os.path.join(scratch, name) for name in ("shape", "whole", "large"))
        for folder, layers in ((model, "8"), (whole, "32"), (large, "600")):
            subprocess.check_call([sys.executable, os.path.join(HERE, "model.py"), folder, layers])
        at_start(disagg, model, "too small a share", ["--gpu-memory-utilization"], "--gpu-memory-utilization", "0.02")
        at_start(disagg, large, "weights that do not fit", ["weights", "GiB"])
        shares(disagg, whole)
        told_to_end(disagg, model)
        in_step(disagg, model, "out-of-memory@60", "OUT_OF_MEMORY")
        in_step(disagg, model, "illegal-address@60", "ILLEGAL_ADDRESS")
        # The engine's thread cannot answer; the streams break when the process exits.
        in_step(disagg, model, "hang@60", "", "--max-step-seconds", "2")
    print("all as it should be" if not failed else f"FAILED: {failed}")
    sys.exit(bool(failed))


main()
