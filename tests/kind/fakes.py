"""Stand-ins for docker, kind, kubectl and helm, for machines without Docker.

They only check their arguments: one that the real tool would refuse ends them with an error. Each call is recorded, and
images are archives in the format of `docker save`, which the fake `kind` reads back.

Run as `fakes.py TOOL ARGUMENT...`. The environment variable FAKES names the folder of their common state.
"""

import io
import json
import os
import pathlib
import re
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
STATE = pathlib.Path(os.environ["FAKES"]) if "FAKES" in os.environ else None


def fail(message):
    sys.exit(f"fake {sys.argv[1]}: {message}")


def options(arguments, with_value, flags=()):
    """Splits arguments into {option: [values]} and the rest; an unknown option is an error."""
    found, rest, at = {}, [], 0
    while at < len(arguments):
        word = arguments[at]
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif name in with_value:
            if not equals:
                at += 1
                if at == len(arguments):
                    fail(f"{name} needs a value")
                value = arguments[at]
            found.setdefault(name, []).append(value)
        elif word in flags:
            found[word] = [""]
        else:
            fail(f"unknown option {word}")
        at += 1
    return found, rest


def folder(name):
    path = STATE / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def file_name(image):
    return re.sub(r"[^A-Za-z0-9._-]", "_", image)


# docker


def docker(arguments):
    verb = arguments.pop(0) if arguments else fail("no command")
    if verb == "build":
        docker_build(arguments)
    elif verb == "save":
        docker_save(arguments)
    else:
        fail(f"unknown command {verb}")


def docker_build(arguments):
    found, rest = options(arguments, ("--file", "--target", "--tag"))
    if len(rest) != 1 or not pathlib.Path(rest[0]).is_dir():
        fail(f"one folder as context, not {rest}")
    text = pathlib.Path(found["--file"][0]).read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    target = found["--target"][0]
    if target not in stages:
        fail(f"no stage {target} in the Dockerfile; it has {stages}")
    for copied in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        if not (pathlib.Path(rest[0]) / copied).exists():
            fail(f"COPY {copied}: not in the context")
    for image in found["--tag"]:
        (folder("built") / file_name(image)).write_text(json.dumps({"image": image, "target": target}))


def docker_save(arguments):
    found, images = options(arguments, ("--output",))
    for image in images:
        if not (folder("built") / file_name(image)).is_file():
            fail(f"no such image: {image}")
    write_archive(pathlib.Path(found["--output"][0]), images)


def write_archive(path, images):
    """An archive as `docker save` writes it."""
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]} for image in images]
    with tarfile.open(path, "w") as out:
        for name, content in (("manifest.json", json.dumps(manifest)), ("config.json", "{}"), ("layer.tar", "")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content.encode()))


# kind


def kind(arguments):
    verb = tuple(arguments[:2])
    rest = arguments[2:]
    if verb == ("get", "clusters"):
        print("\n".join(sorted(path.name for path in folder("clusters").iterdir())))
    elif verb == ("create", "cluster"):
        kind_create(rest)
    elif verb == ("load", "image-archive"):
        kind_load(rest)
    elif verb == ("delete", "cluster"):
        found, more = options(rest, ("--name",))
        cluster(found).unlink(missing_ok=True)
    else:
        fail(f"unknown command {' '.join(verb)}")


def cluster(found):
    return folder("clusters") / found.get("--name", ["kind"])[0]


def kind_create(arguments):
    found, _ = options(arguments, ("--name", "--config", "--wait"))
    if cluster(found).exists():
        fail("node(s) already exist for a cluster with this name")
    config = pathlib.Path(found["--config"][0]).read_text()
    for line in ("kind: Cluster", "apiVersion: kind.x-k8s.io/v1alpha4"):
        if line not in config.splitlines():
            fail(f"the configuration lacks {line!r}")
    if not re.fullmatch(r"[0-9]+[smh]", found.get("--wait", ["0s"])[0]):
        fail(f"--wait {found['--wait'][0]} is no duration")
    cluster(found).write_text("[]")


def kind_load(arguments):
    found, archives = options(arguments, ("--name",))
    if not cluster(found).is_file():
        fail("no nodes found for this cluster")
    if len(archives) != 1:
        fail(f"one archive, not {archives}")
    loaded = json.loads(cluster(found).read_text())
    with tarfile.open(archives[0]) as archive:
        names = archive.getnames()
        for image in json.load(archive.extractfile("manifest.json")):
            lacking = [name for name in (image["Config"], *image["Layers"]) if name not in names]
            if lacking:
                fail(f"the archive lacks {lacking}")
            loaded += image["RepoTags"]
    cluster(found).write_text(json.dumps(loaded))


# kubectl and helm: recorded, and checked by the tests.


def kubectl(arguments):
    found, rest = options(arguments, ("--context", "--filename", "--for", "--timeout", "--namespace"))
    if not rest or rest[0] not in ("apply", "wait"):
        fail(f"unknown command {rest}")
    for path in found.get("--filename", []):
        if not pathlib.Path(path).is_file():
            fail(f"the path {path} does not exist")


def helm(arguments):
    flags = ("--install", "--create-namespace", "--wait")
    valued = ("--kube-context", "--namespace", "--set", "--set-string", "--timeout")
    _, rest = options(arguments, valued, flags)
    if rest[:1] != ["upgrade"] or len(rest) != 3:
        fail(f"`upgrade RELEASE CHART`, not {rest}")
    if not (pathlib.Path(rest[2]) / "Chart.yaml").is_file():
        fail(f"{rest[2]} is no chart")


TOOLS = {"docker": docker, "kind": kind, "kubectl": kubectl, "helm": helm}


def main():
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    TOOLS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
