"""SmolLM2 with a quarter of its submodules replaced, for all tests of a run, and a text that it is calibrated on."""

from functools import cache
from pathlib import Path
from pydoc_data.topics import topics  # some hundred pages of English that every Python has
from tempfile import TemporaryDirectory

import torch

from subfit.cli.main import main
from subfit.model.threads import usable_cores

_folder = TemporaryDirectory(prefix="subfit-")  # removed when Python ends
MANUAL = "\n\n".join(topics.values())
TINY = ("windows=1", "length=64")
SMALL = ("--calibration.windows=4", "--calibration.length=128")
GIVEN = {  # by name; how much is calibrated does not matter for the last two
    "subfit": ("--config=subfit", "--calibration.windows=16", "--calibration.length=256"),
    "best": ("--config=best", *SMALL),
    "greedy": ("--config=greedy", *SMALL, *(f"--{part}.{size}" for part in ("scorer", "selector") for size in TINY)),
}


@cache
def compressed_smollm2(name: str) -> Path:
    """Returns the folder of the model, in float32, that the options `GIVEN[name]` make."""
    text, folder = Path(_folder.name) / "manual.txt", Path(_folder.name) / name
    text.write_text(MANUAL, encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    given = [*GIVEN[name], "--dtype=float32", f"--calibration.path={text}", "--evaluation.windows=0"]
    assert main(["compress", *given, f"--output={folder}"]) == 0
    torch.set_num_threads(threads)
    return folder
