"""The service in this process: a loop in a thread, requests straight into the application."""

import asyncio
import contextlib
import json
import threading
from types import SimpleNamespace

import jax
from score_toy import save_toy_model
from train_toy import LENGTHS

from instructrec_jax.checkpoints.ranking_config import RankingConfig
from instructrec_jax.parallel.mesh import make_mesh
from instructrec_jax.serving import engine
from instructrec_jax.serving.service import ServeSettings, open_application
from instructrec_jax.serving.tokens import make_token
from instructrec_jax.tokenizer import copy_vocabulary


def save_served_model(toy_records, folder):
    """A MODEL_DIR as `train` leaves one."""
    save_toy_model(folder)
    copy_vocabulary(
        toy_records / "toy" / "vocabulary" / "sentencepiece.model", folder / "spiece.model"
    )
    RankingConfig(normaliser="mean", feature_lengths=LENGTHS, extra_ids=0).write(folder)
    return folder


class Served:
    """A service on one device, as users have, that runs while the block does.

    Attributes:
      token: of somebody who may do everything.
      state_dir: its folder.
    """

    def __init__(self, model, state_dir, **settings):
        self.state_dir = state_dir
        scopes = ["rank", "feedback", "metrics"]
        self.token = make_token(
            state_dir=str(state_dir), name="all", scopes=scopes, requests_per_minute=10**6
        )
        self.settings = ServeSettings(model=str(model), state_dir=str(state_dir), **settings)

    def __enter__(self):
        self._opened, all_devices = contextlib.ExitStack(), engine.make_mesh
        engine.make_mesh = lambda settings: make_mesh(settings, jax.devices()[:1])
        self._opened.callback(setattr, engine, "make_mesh", all_devices)
        self.app, self.service = open_application(self.settings, self._opened)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self._begin())
        while self.ask("GET", "/readyz", token=None).status != 200:
            self.run(asyncio.sleep(0.02))
        return self

    def __exit__(self, *_):
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._opened.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def ask(self, method, path, body=None, **given):
        """An answer: status, headers, text, and what it says as JSON."""
        return self.run(self.asking(method, path, body, **given))

    def ask_all(self, *requests):
        """The answers of requests (method, path, body) that are sent at the same time."""

        async def together():
            return await asyncio.gather(*(self.asking(*each) for each in requests))

        return self.run(together())

    async def asking(self, method, path, body=None, *, token="", headers=(), parts=None):
        sent = {"content-type": "application/json", **dict(headers)}
        if token is not None:
            sent.setdefault("authorization", f"Bearer {token or self.token}")
        if parts is None:
            raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
            parts = [raw if isinstance(raw, bytes) else raw.encode()]
            sent.setdefault("content-length", str(len(parts[0])))
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
            "scheme": "http",
        }
        waiting = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
            for index, part in enumerate(parts)
        ]
        found = SimpleNamespace(status=0, headers={}, body=b"")

        async def receive():
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                found.status = message["status"]
                found.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                found.body += message.get("body", b"")

        await self.app(scope, receive, send)
        found.text = found.body.decode()
        is_json = found.headers.get("content-type", "").startswith("application/json")
        found.json = json.loads(found.text) if is_json else None
        return found

    async def _begin(self):
        self._messages = asyncio.Queue()
        started = asyncio.Event()
        await self._messages.put({"type": "lifespan.startup"})

        async def send(message):
            assert "failed" not in message["type"], message
            started.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self._lifespan = asyncio.ensure_future(self.app(scope, self._messages.get, send))
        await started.wait()

    async def _end(self):
        await self._messages.put({"type": "lifespan.shutdown"})
        await self._lifespan
