import pytest
from measured import problems

NAMES = {"study": {"a": 1.6649, "b": 0.8021, "net": 25_486_848, "seconds": 0.24}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is 1.66 at 25 % of 512 tokens. <!-- measured: study['a'] -->", 0),
        ("It is 1.665 and 80 %. <!-- measured:\nstudy['a'], study['b'] -->", 0),
        ("It is 1.65. <!-- measured: study['a'] -->", 1),
        ("It is 1.66.", 1),
        ("It is 1.66, 25.5 million out. <!-- measured: study['a'] -->", 1),
        ("25.5 million or 25,486,848 in 240 ms <!-- measured: study['net'], study['net'], study['seconds'] -->", 0),
        ("- A 1.66 <!-- measured: study['a'] -->\n- B 1.66\n", 1),
        ("- A 1.66 <!-- measured: study['a'] -->\n\n1. On 16 windows of WikiText-2\n", 0),
        ("```\n1.66\n```\n`1.66` [x](1.66) SmolLM2-135M, arXiv 2606.02559, bfloat16", 0),
        ("<!-- table -->\n| 1.66 |\n<!-- end -->\n| 1.66 |", 1),
    ],
)
def test_a_number_is_the_stored_one_or_is_reported(tmp_path, text, found):
    path = tmp_path / "page.md"
    path.write_text(text)
    assert len(problems(path, NAMES)) == found
