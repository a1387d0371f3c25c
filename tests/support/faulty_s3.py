"""A proxy of an S3 server that injects errors, delays and broken answers."""

import asyncio
import io
import random
import threading
from collections import Counter

import aiohttp
from aiohttp import web

SLOW_DOWN = (
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
EXPIRED = (
    "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
NOT_IMPLEMENTED = (
    "<Error><Code>NotImplemented</Code><Message>A header is not implemented.</Message></Error>"
)
KINDS = ("error", "throttled", "reset", "stall", "cut")
_HOP_HEADERS = {"transfer-encoding", "connection", "content-encoding", "content-length", "server"}


class FaultyS3:
    """Passes requests on to ``target``; injects faults into some of them.

    rate: share of requests with a fault, each of one of ``kinds``: error (500), throttled (503),
        reset (no answer), stall (no answer for long), cut (half of the answer's body).
    outage: no request gets an answer. expired: credentials are not accepted. read_only: they are,
        but not to write; ``denied`` has what was tried. refuses: methods for which they are not.
    conditions: what becomes of conditional writes: kept, ignored, or unknown (501).
    """

    def __init__(self, target: str, *, rate: float = 0.0, kinds=KINDS, seed: int = 0) -> None:
        self.rate, self.kinds = rate, kinds
        self.outage = self.expired = self.read_only = False
        self.refuses: tuple[str, ...] = ()
        self.conditions = "kept"
        self.outage_after: int | None = None
        self.faults: Counter[str] = Counter()
        self.denied: list[str] = []
        self.requests = 0
        self.stall_seconds = 30.0
        self._chance = random.Random(seed)
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "FaultyS3":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._client = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.outage_after is not None and self.requests > self.outage_after:
            self.outage = True
        if self.outage:
            return self._abort(request)
        if self.expired:
            return web.Response(status=400, text=EXPIRED, content_type="application/xml")
        if self.conditions == "unknown" and "If-None-Match" in request.headers:
            return web.Response(status=501, text=NOT_IMPLEMENTED, content_type="application/xml")
        is_refused = self.read_only and request.method not in ("GET", "HEAD")
        if is_refused or request.method in self.refuses:
            self.denied.append(f"{request.method} {request.raw_path}")
            return web.Response(status=403, text=DENIED, content_type="application/xml")
        kind = self._chance.choice(self.kinds) if self._chance.random() < self.rate else None
        if kind:
            self.faults[kind] += 1
        if kind == "error":
            return web.Response(status=500)
        if kind == "throttled":
            return web.Response(status=503, text=SLOW_DOWN, content_type="application/xml")
        if kind == "reset":
            return self._abort(request)
        if kind == "stall":
            await asyncio.sleep(self.stall_seconds)
            return self._abort(request)
        return await self._pass_on(request, cut=kind == "cut")

    async def _pass_on(self, request: web.Request, *, cut: bool) -> web.StreamResponse:
        dropped = {"host"} | ({"if-none-match"} if self.conditions == "ignored" else set())
        headers = {k: v for k, v in request.headers.items() if k.lower() not in dropped}
        async with self._client.request(
            request.method,
            self._target + request.raw_path,
            headers=headers,
            data=io.BytesIO(await request.read()),
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_HEADERS}
            response = web.StreamResponse(status=answer.status, headers=kept)
            is_head = request.method == "HEAD"
            length = int(answer.headers.get("Content-Length", 0)) if is_head else len(body)
            response.content_length = length
            await response.prepare(request)
            if cut and len(body) > 1:
                await response.write(body[: len(body) // 2])
                return self._abort(request)
            if not is_head:
                await response.write(body)
            await response.write_eof()
            return response

    def _abort(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
