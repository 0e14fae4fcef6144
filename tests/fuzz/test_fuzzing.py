"""Changed options, files and checkpoints end in success, or in one clear line and exit code 2; see `execution.problem`.

The suite has 500 executions. `make fuzz` has 20,000, of the seed that it prints; FUZZ_EXECUTIONS and FUZZ_SEED set both.
Cases that were once found are in the folder `corpus`.
"""

import os
from pathlib import Path

import pytest
from execution import Case, problem
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from targets import TARGETS
from worlds import make_world

EXECUTIONS = int(os.environ.get("FUZZ_EXECUTIONS", "500"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.json"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("fuzz") / "world")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_nothing_ends_in_a_traceback(target, world, tmp_path):
    found: dict[str, Case] = {}
    count = 0

    @seed(SEED)
    @settings(
        max_examples=max(1, EXECUTIONS * TARGETS[target] // 100),
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def execute(data):
        nonlocal count
        case = target(data.draw, world)
        count += 1
        if (what := problem(case, world)) is not None:
            found.setdefault(what, case)

    execute()
    print(f"{target.__name__}: {count} executions of seed {SEED}")
    for number, (what, case) in enumerate(found.items()):
        path = tmp_path / f"{target.__name__}-{number}.json"
        path.write_text(case.as_json(), encoding="utf-8")
        print(f"{path}: {what}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_once_found(path, world):
    assert problem(Case.read(path), world) is None
