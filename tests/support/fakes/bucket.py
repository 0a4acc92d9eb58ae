"""A bucket that speaks as much of S3's API as object storage clients use for whole objects and lists."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

NAME = "bucket"
TYPE = "application/xml"


@dataclass(frozen=True)
class Refusal:
    """As servers say no: a code and a message on the second line of the body, which a HEAD has not."""

    status: int
    code: str
    message: str

    def answer(self, method: str) -> web.Response:
        """To a request."""
        told = f"<Code>{self.code}</Code><Message>{self.message}</Message><StringToSign>AWS4-HMAC</StringToSign>"
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{told}</Error>'
        return web.Response(status=self.status, text="" if method == "HEAD" else text, content_type=TYPE)


NO_KEY = Refusal(404, "NoSuchKey", "The specified key does not exist.")
NO_BUCKET = Refusal(404, "NoSuchBucket", "The specified bucket does not exist")
BAD_KEY = Refusal(403, "SignatureDoesNotMatch", "The request signature we calculated does not match &#34;yours&#34;.")


class FakeBucket:
    """`objects`: key → content. `refusal`: what every request is answered with; None: rightly."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refusal: Refusal | None = None
        self.asked: list[str] = []
        """Methods and paths of all requests."""
        self.aborted = 0
        """Uploads in parts that were given up."""
        self._parts: dict[str, dict[int, bytes]] = {}
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        """The usual variables that lead here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key-id",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_REGION": "eu-west-1",
        }

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", f"/{NAME}{{slash:/?}}{{key:.*}}", self._answer)
        app.router.add_route("*", "/{other:.*}", self._no_bucket)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _no_bucket(self, request: web.Request) -> web.Response:
        return NO_BUCKET.answer(request.method)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append(f"{request.method} {request.path}")
        if self.refusal is not None:
            return self.refusal.answer(request.method)
        key, query = request.match_info["key"], request.query
        if request.method == "POST" and "uploads" in query:
            number = str(len(self._parts))
            self._parts[number] = {}
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>")
        if "uploadId" in query:
            return self._part(request.method, key, query["uploadId"], int(query.get("partNumber", "0")), body)
        if "delete" in query:
            gone = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for name in gone:
                self.objects.pop(name, None)
            return _xml(
                "<DeleteResult>" + "".join(f"<Deleted><Key>{n}</Key></Deleted>" for n in gone) + "</DeleteResult>"
            )
        if not key:
            return self._list(query.get("prefix", ""))
        if request.method == "PUT":
            self.objects[key] = body
            return web.Response(headers={"ETag": '"e"'})
        if key not in self.objects:
            return NO_KEY.answer(request.method)
        if request.method == "DELETE":
            del self.objects[key]
            return web.Response(status=204)
        written = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        headers = {"ETag": '"e"', "Last-Modified": written}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(self.objects[key]))})
        return web.Response(body=self.objects[key], headers=headers)

    def _part(self, method: str, key: str, upload: str, number: int, body: bytes) -> web.Response:
        if method == "PUT":
            self._parts[upload][number] = body
            return web.Response(headers={"ETag": f'"{number}"'})
        parts = self._parts.pop(upload)
        if method == "DELETE":
            self.aborted += 1
            return web.Response(status=204)
        self.objects[key] = b"".join(content for _, content in sorted(parts.items()))
        return _xml(f"<CompleteMultipartUploadResult><Key>{key}</Key><ETag>e</ETag></CompleteMultipartUploadResult>")

    def _list(self, prefix: str) -> web.Response:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{now}</LastModified><ETag>e</ETag><Size>{len(content)}</Size>"
            "</Contents>"
            for key, content in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return _xml(f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")


def _xml(text: str) -> web.Response:
    return web.Response(text=text, content_type=TYPE)
