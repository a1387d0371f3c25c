"""S3 for tests: a moto server."""

import urllib.request
import uuid
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A moto server: S3 as a process of its own, with one empty bucket to start with."""

    endpoint_url: str
    bucket: str

    def new_bucket(self) -> "S3Server":
        """Make a fresh, empty bucket."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.endpoint_url}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return S3Server(endpoint_url=self.endpoint_url, bucket=bucket)

    def uri(self, key: str = "") -> str:
        """The s3:// uri of a key in the bucket."""
        return f"s3://{self.bucket}/{key}"
