"""Storage on a bad day: errors, throttling, resets, stalls, cut answers, outages, changes."""

import io
import random

import pytest
from PIL import Image
from rich.console import Console

from jobs.plan import plan as plan_job
from jobs.run import annotate, retry
from pipeline.output.table import read_committed
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, StorageError, UnitError
from schemas.job.job import check_job
from tests.support.faulty_s3 import KINDS, FaultyS3

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def faulty(s3):
    with FaultyS3(s3.endpoint_url) as proxy:
        proxy.bucket = s3.new_bucket()
        yield proxy


def options(proxy: FaultyS3, read_seconds: float = 60.0) -> dict:
    """read_seconds: how long a client waits for an answer; few only where answers stall."""
    import aiohttp

    s3 = {"read_timeout": read_seconds, "connect_timeout": 60}
    https = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=read_seconds)
    return {
        "s3": {"endpoint_url": proxy.url, "key": "k", "secret": "s", "config_kwargs": s3},
        "https": {"client_kwargs": {"timeout": https}},
    }


def read(storage: Storage, uri: str) -> bytes:
    with storage.open_media(uri) as media:
        return media.file.read()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_one_in_four_requests_fails_and_every_byte_arrives(faulty, scheme: str, kind: str):
    options_of_kind = options(faulty, 2.0) if kind == "stall" else options(faulty)
    storage = Storage(options_of_kind, allow_private_hosts=True)
    storage.write_bytes(faulty.bucket.uri("a.mp4"), CONTENT)
    fs, path = storage.filesystem(faulty.bucket.uri("a.mp4"))
    fs.chmod(path, acl="public-read")  # so that it can be read by its url
    faulty.rate, faulty.kinds = 0.25, (kind,)
    bucket = faulty.bucket.bucket
    uri = f"s3://{bucket}/a.mp4" if scheme == "s3" else f"{faulty.url}/{bucket}/a.mp4"
    for _ in range(50):
        assert read(storage, uri) == CONTENT
        if faulty.faults[kind] > 1:
            break
    if scheme == "s3":
        for k in range(5):
            storage.write_bytes(faulty.bucket.uri(f"out/{k}"), CONTENT[:1000])
        assert len(storage.list_files(faulty.bucket.uri("out"))) == 5
    assert faulty.faults[kind] > 1


def test_expired_credentials_are_named(faulty):
    storage = Storage(options(faulty))
    storage.write_bytes(faulty.bucket.uri("a.mp4"), b"content")
    faulty.expired = True
    with pytest.raises(StorageError, match="access denied; check credentials"):
        storage.write_bytes(faulty.bucket.uri("b"), b"")
    with pytest.raises(UnitError, match="as it does for expired credentials") as caught:
        read(storage, faulty.bucket.uri("a.mp4"))
    assert caught.value.error_type == ErrorType.MEDIA_DENIED


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_storage_that_is_away_is_an_error_of_its_own(faulty, scheme: str):
    storage = Storage(options(faulty), allow_private_hosts=True)
    faulty.outage = True
    uri = faulty.bucket.uri("a") if scheme == "s3" else f"{faulty.url}/a?X-Amz-Signature=PLANTED"
    with pytest.raises(UnitError, match="try again later") as caught:
        read(storage, uri)
    assert caught.value.error_type == ErrorType.STORAGE_FAILED
    assert "PLANTED" not in str(caught.value)


@pytest.mark.long
def test_a_run_over_bad_storage_an_outage_and_a_changed_object(faulty, checkpoint, ray_session):
    storage = Storage(options(faulty, 1.5))

    def paint(k: int, color: str) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), color).save(buffer, "PNG")
        storage.write_bytes(faulty.bucket.uri(f"media/{k:02}.png"), buffer.getvalue())

    for k in range(24):
        paint(k, f"#{k:02}9900")
    simulated = {"speed": 1000.0, "output_tokens": 8}
    spec = {
        "input": {"scan": faulty.bucket.uri("media")},
        "output": faulty.bucket.uri("out"),
        "model": {"source": str(checkpoint), "engine": "simulated", "simulated": simulated},
        "resources": {"units_per_file": 2},
        "storage_options": {"s3": options(faulty, 1.5)["s3"]},
    }
    job = check_job(spec, "test")
    said = Console(file=io.StringIO(), width=120)

    faulty.rate = 0.1
    plan = plan_job.run(job, said)
    assert plan["status"].to_pylist() == ["planned"] * 24
    (started,) = storage.list_files(faulty.bucket.uri("out/runs"), "*/run.json")

    # The storage goes away in the middle, media and output at once.
    faulty.outage_after = faulty.requests + 60
    with pytest.raises(StorageError):
        annotate.run(job, said)
    faulty.outage, faulty.outage_after = False, None

    # The same command goes on, though one object in ten requests fails.
    faulty.kinds = ("error", "throttled", "reset", "cut")
    run = annotate.run(job, said)
    assert run.run_id in started["uri"]
    assert run.counts["units"] == 24
    assert run.counts["status"] == {"ok": 24}

    # Objects that change after they were planned are seen, and are done by a retry.
    # A manifest tells no versions, so the run stays the same; a scan would begin another.
    uris = [faulty.bucket.uri(f"media/{k:02}.png") for k in range(24)]
    listed = faulty.bucket.uri("again.jsonl")
    storage.write_bytes(listed, "".join(f'{{"uri": "{uri}"}}\n' for uri in uris).encode())
    changed = {"name": "again", "tasks": ["ocr"], "input": {"manifest": listed}}
    again = check_job(spec | changed, "test")
    plan_job.run(again, said)
    paint(5, "white")
    run = annotate.run(again, said)
    assert run.counts["errors"] == {"media_changed": 1}
    run = retry.run(again, said)
    assert run.counts["status"] == {"ok": 24}
    rows = read_committed(again.output, run.recipe_ids, storage)["unit_id"].to_pylist()
    assert len(set(rows)) == len(rows) == 24
    assert faulty.faults
