"""A backbone from the hub: only the files it needs are fetched, then cached; a hub that fails says so in time."""

import contextlib
import hashlib
import http.server
import socket
import threading
import time

import pytest
from backbone.test_loading import assert_loads_as, full_model, load, one_line
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from llata_fast.backbone import read_backbone_config


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files` ({name: bytes}) of the model `org/tiny` like the hub, and records requests in `fetched`."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        repo, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        content = self.server.files.get(name) if repo == "org/tiny" else None
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if repo == "org/tiny" else "RepoNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body and content is not None:
            self.server.fetched.append(name)
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    """`online(address)` sets the hub's address and an empty cache."""

    def at(address):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.invalid")
    close_session()
    yield at
    close_session()


@pytest.fixture
def hub(online):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.fetched = {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online(f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["single", "sharded"])
def test_hub_model_is_cached(hub, size, tmp_path, monkeypatch):
    model = full_model("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    load("org/tiny")
    assert len(hub.fetched) == len(set(hub.fetched))
    # only the shards of the first layers
    if size == "20KB":
        assert len(hub.fetched) < len(hub.files) - 1
    fetched = len(hub.fetched)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_loads_as("org/tiny", model.base_model)
    assert len(hub.fetched) == fetched


def test_hub_knows_no_such_model(hub):
    assert "no such model on the hub" in one_line(read_backbone_config, "org/unknown")
    assert "config.json" in one_line(read_backbone_config, "org/tiny")


@pytest.mark.parametrize("trouble", ["no such host", "refused", "silent", "slow"])
def test_unreachable_hub_is_reported_in_time(online, trouble):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        if trouble == "slow":
            # a byte now and then keeps a socket from timing out
            threading.Thread(target=drip, args=[listener], daemon=True).start()
        if trouble == "refused":
            listener.close()
        online("http://hub.invalid" if trouble == "no such host" else f"http://{host}:{port}")
        start = time.monotonic()
        message = one_line(read_backbone_config, "org/tiny")
        assert time.monotonic() - start < 15
    assert "org/tiny" in message and "is unreachable" in message


def drip(listener):
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for i in range(30):
            connection.sendall(f"X-{i}: {i}\r\n".encode())
            time.sleep(1)


def test_offline_without_cache(online, monkeypatch):
    online("http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline" in one_line(read_backbone_config, "org/tiny")
