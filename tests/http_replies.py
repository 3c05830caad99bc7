"""Replies of a test's HTTP server, and the file in a form that was sent to it."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reply:
    """One reply; `ends` closes the connection instead, after `body`."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    ends: bool = False


def file_of_form(content_type: str, body: bytes) -> bytes:
    """Returns the file of a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("the form holds no file")


JSON_HEADERS = (("content-type", "application/json"),)


def as_json(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode(), JSON_HEADERS)


def as_error(
    status: int, message: str, code: str, headers: tuple[tuple[str, str], ...] = ()
) -> Reply:
    error = {"message": message, "type": code, "code": code, "param": None}
    return Reply(status, json.dumps({"error": error}).encode(), (*JSON_HEADERS, *headers))


def head_of(reply: Reply) -> bytes:
    length = ("content-length", str(len(reply.body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in (*reply.headers, length))
    return f"HTTP/1.1 {reply.status} -\r\n{lines}\r\n".encode()
