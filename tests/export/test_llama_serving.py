"""llama.cpp as an engine of `subfit benchmark`, where it cannot run."""

from pathlib import Path

import pytest

from subfit.errors import SubFitError
from subfit.export.engine import Demand, open_model


def test_without_llama_cpp_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setattr("subfit.export.llama_engine.find_spec", lambda name: None)
    with pytest.raises(SubFitError, match="the engine llama.cpp needs llama.cpp: pip install"):
        open_model("llama.cpp", Path("model"), Demand("float32", 64, 1)).__enter__()


@pytest.mark.parametrize("demand", [Demand("float32", 64, 1, python="python3"), Demand("float32", 64, 1, compiled=True)])
def test_it_runs_here_and_compiles_nothing(monkeypatch, demand):
    monkeypatch.setattr("subfit.export.llama_engine.find_spec", lambda name: name)
    with pytest.raises(SubFitError, match="leave out engine_python and compile"):
        open_model("llama.cpp", Path("model"), demand).__enter__()
