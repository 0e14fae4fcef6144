"""The report in a browser, at the widths of a phone and of a desktop."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from subfit.ablation.report import report

STUDY = Path(__file__).parents[2] / "experiments" / "results" / "quality"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
MEASURE = """<iframe id="page" style="width: {width}px; height: {height}px; border: 0" srcdoc="{page}"></iframe>
<script>
  window.onload = () => {{
    const view = document.getElementById("page").contentWindow, root = view.document.documentElement;
    const first = () => view.document.querySelector("td").innerText, before = first();
    view.document.querySelectorAll("th button")[2].click();
    document.title = [root.scrollWidth, view.innerWidth, before, first()].join("|");
  }};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed, so the page is not laid out")
@pytest.mark.parametrize(("width", "height"), [(375, 812), (1280, 800)])
def test_the_page_fits_the_screen_and_its_table_sorts(tmp_path, width, height):
    """In a frame of that size, as a browser's window may not be as narrow as a phone's."""
    page = report([str(STUDY)], str(tmp_path / "page")).read_text(encoding="utf-8")
    path = tmp_path / "frame.html"
    path.write_text(MEASURE.format(width=width, height=height, page=html.escape(page)), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=9000",
    ]
    command = [BROWSER, *options, "--window-size=1400,1000", "--dump-dom", path.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    scrolled, inner, before, after = re.search(r"<title>(.*?)</title>", found)[1].split("|")
    assert int(scrolled) <= int(inner) == width
    assert before == "best, equal net parameters" and after == "nbl"  # whose ratio of 1.16 is the lowest
