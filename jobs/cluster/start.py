"""Start Ray on this machine, or connect to a cluster."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from _reelscribe import PACKAGES, ROOT
from schemas.errors import ResourceError

_LATE = "timed out during startup"
"""What Ray says when a node of its own is not up after 30 s, which is no setting of Ray."""
_CLUSTER_SECONDS = 30.0
"""How long a cluster may take to answer."""


def on_this_machine() -> bool:
    """Whether the job runs where this process does, and not on the cluster at RAY_ADDRESS."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def running_ray() -> str | None:
    """Address of a Ray on this machine that Ray would join by itself; None: there is none.

    A Ray that was killed leaves its address behind, and Ray would wait for it for many minutes.
    """
    if os.environ.get("RAY_ADDRESS"):
        return None
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return None
    return address


def start_ray(**options: Any) -> None:
    """Start Ray or connect to it, without its banner and its workers' logs on the console.

    Raises:
        ResourceError: the cluster at RAY_ADDRESS does not answer, or Ray does not start.
    """
    # Ray's C++ core would write a line on stderr for each actor pool of Ray Data.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # OpenMP's idle threads would spin on cores that other actors need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import ray
    from ray.job_config import JobConfig

    own = on_this_machine()
    if own:  # a busy machine takes longer than the default of 5 s to start Ray's control service
        os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "60")
        if running_ray() is None:
            options = {"address": "local"} | options
    else:
        _check_answers(os.environ["RAY_ADDRESS"])
    _check_python_path()
    for is_last in (False, True):
        try:
            job_config = JobConfig()
            installed = ROOT.name in ("site-packages", "dist-packages")  # these must not come first
            job_config._py_driver_sys_path = _OwnFolders([] if installed else [str(ROOT)])
            with _without_stderr():
                ray.init(
                    job_config=job_config,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    # Only for a Ray that is started here: a running cluster has its own setting.
                    include_dashboard=False if own else None,
                    **options,
                )
        except Exception as error:  # Ray raises a plain Exception when a node starts late
            if _LATE in str(error) and not is_last:
                ray.shutdown()  # what has started of it
                continue  # a busy machine: the files are in memory now, and Ray's 30 s may suffice
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ResourceError(f"cannot start or join Ray: {reason}") from None
        else:
            return


def _check_python_path() -> None:
    """Refuse a PYTHONPATH in which Ray's workers would find other packages with our names."""
    folders = [f for f in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(f)]
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, folders)
        if spec and spec.origin and Path(spec.origin).resolve().parent.parent != ROOT:
            raise ResourceError(
                f"{spec.origin} is on PYTHONPATH and has the name of Reelscribe's package "
                f"{name!r}: rename it, or take its folder off PYTHONPATH"
            )


def _check_answers(address: str) -> None:
    """Wait 30 s for a cluster; by itself, Ray would wait ten minutes for one that is not there.

    Raises:
        ResourceError: nothing answers at ``address``, it is no Ray cluster, or it wants a token
            that this process does not have.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.port is None:  # "auto" looks for a cluster on this machine, and fails at once
            return
    except ValueError as error:
        raise _no_answer(address, error) from None
    deadline = time.monotonic() + _CLUSTER_SECONDS
    while True:
        try:
            left = max(1.0, deadline - time.monotonic())
            socket.create_connection((parts.hostname, parts.port), timeout=left).close()
            break
        except OSError as error:
            if time.monotonic() + 1 > deadline:
                raise _no_answer(address, error) from None
        time.sleep(1)
    if parts.scheme:  # a proxy's address
        return
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "20")
    import ray
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    try:
        # Without a token, Ray's core would end this process, without a word.
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        with _without_stderr():
            ray._raylet.GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        raise _no_token(address) from None
    except Exception as error:  # RpcError and others, of no public class
        refused = "InvalidAuthToken" in str(error)
        raise (_no_token(address) if refused else _no_answer(address, error)) from None


def _no_answer(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"the Ray cluster at RAY_ADDRESS={address} does not answer ({error}): start it, correct "
        "RAY_ADDRESS, or unset it to run on this machine"
    )


def _no_token(address: str) -> ResourceError:
    mode = os.environ.get("RAY_AUTH_MODE")
    return ResourceError(
        f"the Ray cluster at RAY_ADDRESS={address} wants its token: set RAY_AUTH_MODE=token (now "
        f"{mode or 'not set'}), and RAY_AUTH_TOKEN to the token or RAY_AUTH_TOKEN_PATH to its file"
    )


class _OwnFolders(list[str]):
    """The folders that Ray puts first on its workers' path.

    Ray would add the driver's folder and that of its script, where a user's ``schemas.py`` would
    take the place of our package.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Leave out the folders that Ray adds."""


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence stderr also for C++: Ray's core reports there that its log level was set."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
