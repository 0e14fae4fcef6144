"""A hub that cannot be reached is found out at once; one that is slow, or answers with an error, is asked again."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from subfit.cli.main import main
from subfit.model.hub_access import check_reachable

PATHS = "/{repo_id}/resolve/{revision}/{filename}"
COMMANDS = (
    "evaluate nobody/nothing",
    "compress --model nobody/nothing --output out",
    "compress --model {model} --calibration.dataset nobody/nothing --output out",
    "benchmark --random_weights nobody/nothing",
)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Callable[[str], None]]:
    """What the environment variables of huggingface_hub set at its import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    close_session()  # the client of an offline process refuses all

    def set_endpoint(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + PATHS)

    yield set_endpoint
    close_session()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_way_to_the_hub_is_one_line_without_another_try(command, hub, model_folder, capfd):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # but does not listen
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for endpoint, reason in ((refusing, "Connection refused"), ("http://hub.invalid", "")):
            hub(endpoint)
            assert main(command.format(model=model_folder).split()) == 2
            lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("loading")]
            assert len(lines) == 1
            assert f"nobody/nothing is not on this machine, and {endpoint} cannot be reached: [Errno " in lines[0]
            assert reason in lines[0]


def test_a_slow_hub_and_an_error_are_left_to_what_loads(hub):
    class Failing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadingHTTPServer(("127.0.0.1", 0), Failing) as failing:
        threading.Thread(target=failing.serve_forever, daemon=True).start()
        for port in (silent.getsockname()[1], failing.server_port):
            hub(f"http://127.0.0.1:{port}")
            check_reachable("nobody/nothing")
        failing.shutdown()
