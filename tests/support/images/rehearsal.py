"""Build and run an image without a container engine: chroot and namespaces of Linux.

`FROM python:3.11.14-slim-bookworm` becomes a root by debootstrap with Debian's own Python of the
same minor version, in /usr/local as in that image. All other steps are the Dockerfile's own.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.images.dockerfile import copied, steps
from tests.support.paths import ROOT

BASE = re.compile(r"python:(?P<minor>3\.\d+)\.\d+-slim-(?P<release>[a-z]+)")
PACKAGES = ("ca-certificates", "netbase", "tzdata", "python3-venv")
"""What Debian's minimal root lacks of the base image, beside libpython."""
RECORDED = ("HEALTHCHECK", "CMD", "ENTRYPOINT")
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
UNPRIVILEGED = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


@dataclass
class Image:
    """A root with an image's files, and what a container of it starts with."""

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/bin"}
    )
    folder: str = "/"
    user: str = "0"
    recorded: dict[str, str] = field(default_factory=dict)


def why_not() -> str | None:
    """Why an image cannot be rehearsed here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can make a root file system (debootstrap, mount)"
    for program in ("debootstrap", "unshare", "chroot", "ip"):
        if shutil.which(program) is None:
            return f"there is no {program}: apt-get install debootstrap iproute2"
    done = subprocess.run(
        ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


def build(file: Path, root: Path) -> Image:
    """Carry out all steps of a Dockerfile; takes minutes, a network and some gigabytes.

    Raises:
        subprocess.CalledProcessError: a step failed; its output was printed.
        ValueError: a step that is not known here.
    """
    image, args = Image(root), dict[str, str]()
    settings = _pip_settings()
    for step in steps(file):
        name, rest = step
        print(name, rest, flush=True)
        if name == "FROM":
            _debootstrap(rest, root)
        elif name == "ARG":
            key, _, default = rest.partition("=")
            # docker build --build-arg
            args[key] = settings.get(key.removeprefix("PIP_").lower().replace("_", "-"), default)
        elif name == "ENV":
            image.env |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "WORKDIR":
            image.folder = os.path.join(image.folder, rest)
            _inside(root, image.folder).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            for source, goal in copied(step):
                _copy(source, goal, image)
        elif name == "RUN":
            _run_step(image, rest, args, settings)
        elif name == "USER":
            image.user = rest
        elif name in RECORDED:
            image.recorded[name] = rest
        else:
            raise ValueError(f"the rehearsal does not know {name} {rest}")
    return image


def run(
    image: Image, command: Sequence[str], output: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as a restricted pod's container would.

    As the image's user, without capabilities and with no network but loopback. The root is
    read-only but for an empty /tmp, /dev/shm, and `output`, which is /output there.
    """
    root, uid = image.root, int(image.user)
    output.mkdir(parents=True, exist_ok=True)
    for path in (output, *output.rglob("*")):
        os.chown(path, uid, uid)
    prepare = f"""
        set -e
        ip link set lo up
        mount --bind {root} {root}
        mkdir -p {root}/output
        mount --bind {output} {root}/output
        mount -t tmpfs -o mode=1777 none {root}/tmp
        {_devices(root)}
        mount -o remount,ro,bind {root}
        cd {root}
        exec chroot {root} "$@"
    """
    users = (line.split(":") for line in (root / "etc/passwd").read_text().splitlines())
    (home,) = [user[5] for user in users if user[2] == image.user]
    all_env = {"HOME": home} | image.env | dict(env or {})
    variables = [f"{key}={value}" for key, value in all_env.items()]
    entrypoint = ["env", "-i", f"--chdir={image.folder}", *variables]
    entrypoint += ["setpriv", f"--reuid={uid}", f"--regid={uid}", *UNPRIVILEGED, *command]
    return subprocess.run(
        [*NAMESPACES, "--net", "--ipc", "--uts", "sh", "-c", prepare, "sh", *entrypoint],
        capture_output=True,
        text=True,
        check=False,
    )


def _debootstrap(base: str, root: Path) -> None:
    found = BASE.fullmatch(base)
    if found is None:
        raise ValueError(f"no stand-in for FROM {base}")
    python = f"python{found['minor']}"
    packages = ",".join((*PACKAGES, f"lib{python}"))
    # In a namespace of its own, so that what it mounts goes with it.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={packages}"]
    subprocess.run([*command, found["release"], str(root)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["chroot", str(root), python, "-m", "venv", "/usr/local"], check=True)


def _copy(source: str, goal: str, image: Image) -> None:
    """Copy from the build's context, which `.dockerignore` bounds."""
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    if f"!{source}" not in allowed:
        raise ValueError(f"COPY {source}: .dockerignore leaves it out")
    to = _inside(image.root, os.path.join(image.folder, goal))
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(ROOT / source, to)


def _run_step(
    image: Image, script: str, args: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    """A RUN step, as root and with this machine's network, pip settings and certificates."""
    root = image.root
    pip_conf = root.parent / "pip.conf"
    lines = [f"{key} = {value}" for key, value in settings.items()]
    pip_conf.write_text("\n".join(["[global]", *lines, ""]))
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    binds = [(pip_conf, "/etc/pip.conf"), (certificates, certificates)]
    binds += [("/etc/resolv.conf", "/etc/resolv.conf"), ("/etc/hosts", "/etc/hosts")]
    binds += [(path, path) for path in _local_folders(settings)]
    mounts = []
    for source, goal in binds:
        to = _inside(root, str(goal))
        # A mount point that is not in the image is made in it, empty, as an engine does.
        make = f"mkdir -p {to}" if Path(source).is_dir() else f"mkdir -p {to.parent}; touch {to}"
        mounts.append(f"{make}; mount --bind -o ro {source} {to}")
    prepare = "\n".join(["set -e", *mounts, _devices(root), f'exec chroot {root} "$@"'])
    variables = [f"{key}={value}" for key, value in (image.env | dict(args)).items()]
    step = [
        "env",
        "-i",
        f"--chdir={image.folder}",
        "HOME=/root",
        *variables,
        "/bin/sh",
        "-c",
        script,
    ]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    subprocess.run([*namespaces, "sh", "-c", prepare, "sh", *step], check=True)


def _devices(root: Path) -> str:
    """Shell lines that give a root its own /proc and a /dev with the harmless devices alone."""
    devices = "null zero full random urandom"
    return f"""
        mount -t proc none {root}/proc
        mount -t tmpfs -o mode=0755 none {root}/dev
        mkdir -p {root}/dev/shm
        mount -t tmpfs -o mode=1777 none {root}/dev/shm
        for device in {devices}; do
            touch {root}/dev/$device
            mount --bind /dev/$device {root}/dev/$device
        done
        ln -s /proc/self/fd {root}/dev/fd
    """


def _pip_settings() -> dict[str, str]:
    """Where pip finds packages on this machine; the project names no index of its own."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, value = line.split("=", 1)
        settings[key.removeprefix(":env:").rpartition(".")[2]] = value.strip("'\"")
    return settings


def _local_folders(settings: Mapping[str, str]) -> list[str]:
    """Files and folders of this machine that the settings name."""
    found = []
    for word in " ".join(settings.values()).split():
        # An index of files has them beside it.
        path = str(Path(word.removeprefix("file://")).parent) if word.startswith("file:") else word
        if path.startswith("/") and Path(path).exists():
            found.append(path)
    return sorted(set(found) - {"/etc/ssl/certs/ca-certificates.crt"})


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
