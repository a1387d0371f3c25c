"""A web server of media, with paths that have typical faults of servers."""

import base64
import contextlib
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(0).randbytes((3 << 20) + 17)
BLOCKS = CONTENT[: 2 << 20]  # a whole number of the reader's blocks


class Handler(BaseHTTPRequestHandler):
    """Serves byte ranges of /clip.mp4 and /blocks.mp4; other paths have faults."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(with_body=True)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        # As it was sent: self.path is without further slashes in front.
        self.server.targets.append(self.raw_requestline.split(b" ")[1].decode())
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        self.server.headers.append(dict(self.headers))
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind == "status":
            return self.reply(int(name), b"")
        if kind == "s3-denied":  # S3's answer to an unknown access key
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"
            return self.reply(403, body)
        if kind == "redirect":
            return self.reply(302, b"", Location=base64.urlsafe_b64decode(name).decode())
        if kind == "head-forbidden" and not with_body:
            return self.reply(403, b"")
        content = BLOCKS if name == "blocks.mp4" else CONTENT
        if kind == "no-length":  # chunked, as by a script that generates content
            return self.reply_chunked(content, with_body)
        if kind == "breaks" and with_body and self.headers.get("Range") != "bytes=0-1048575":
            return self.reply(500, b"")
        wanted = self.headers.get("Range")
        if kind in ("no-ranges", "says-none") or not wanted:
            headers = {"Accept-Ranges": "none"} if kind == "says-none" else {}
            return self.reply(200, content, **headers)
        start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if start > end or start >= len(content):
            self.server.bad_ranges.append(wanted)
            return self.reply(416, b"")
        part = content[start : end + 1]
        last = start + len(part) - 1
        return self.reply(206, part, **{"Content-Range": f"bytes {start}-{last}/{len(content)}"})

    def reply(self, status, body, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"the-etag"')
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            # Counted before the client has the body, because then the test reads the count.
            self.server.num_bytes += len(body)
            with contextlib.suppress(ConnectionError):  # a client may close early
                self.wfile.write(body)

    def reply_chunked(self, content, with_body):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for begin in range(0, len(content) if with_body else 0, 100_000):
            part = content[begin : begin + 100_000]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if with_body:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that close early
