"""`subfit push` to a hub of our own, which takes one commit, and what it then serves opens by remote code."""

import base64
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import run

import pytest

from subfit import SubFitError, compress
from subfit.cli.main import main
from subfit.export.hub import push

COMMIT = "a" * 40
OPEN = """
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained("someone/small", trust_remote_code=True)).__name__)
"""


class Hub(BaseHTTPRequestHandler):
    """A hub of models with one commit each."""

    repositories: dict[str, dict[str, bytes]] = {}
    settings: dict[str, dict] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            self.settings[name] = given
            self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif parts[1:] == ["validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif "commit" in parts:
            lines = [json.loads(line) for line in body.splitlines()]
            name = "/".join(parts[2:4])
            files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            self.repositories[name] = {path: base64.b64decode(content) for path, content in files.items()}
            self.answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": COMMIT} for path in files]
            return self.answer(tree if "tree" in parts else {"id": name, "sha": COMMIT, "siblings": siblings})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.answer(content, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{hash(content)}"'})

    do_HEAD = do_GET

    def answer(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """The address of a hub, in another thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def folder(model_folder, text_file, tmp_path_factory):
    """A compressed model."""
    output = tmp_path_factory.mktemp("pushed") / "small"
    data = {"path": str(text_file), "windows": 8, "length": 32}
    compress(model=str(model_folder), calibration=data, evaluation={"windows": 1, "length": 32}, output=str(output))
    return output


def test_a_compressed_model_is_pushed_and_opens_from_the_hub(subfit, hub, folder, tmp_path):
    token = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_someone", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **token, "HF_HUB_DISABLE_XET": "1"}
    done = subfit("push", folder, "someone/small", "--private", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"commit": f"{hub}/someone/small/commit/{COMMIT}"}
    files = Hub.repositories["someone/small"]
    assert set(files) == {path.name for path in folder.iterdir()}
    assert all(files[name] == (folder / name).read_bytes() for name in files if name != "README.md")
    card, record = files["README.md"].decode(), json.loads((folder / "compression.json").read_text())
    assert 'from_pretrained("someone/small", trust_remote_code=True)' in card
    assert f"{record['evaluation']['perplexity']:.2f}" in card and "private" in json.dumps(Hub.settings["someone/small"])
    opened = run([sys.executable, "-c", OPEN], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert opened.stdout.strip() == "SubFitLlamaForCausalLM", opened.stderr[-2000:]


def test_what_cannot_be_pushed_is_one_line(folder, model_folder, capsys):
    with pytest.raises(SubFitError, match="is not a folder that subfit compress wrote"):
        push(str(model_folder), "someone/dense")
    assert main(["push", str(folder), "not a name"]) == 2
    assert main(["push", str(folder), "someone/small"]) == 2  # the tests are offline
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.strip().splitlines()) == 2
    assert "the hub does not take someone/small: " in shown.err
