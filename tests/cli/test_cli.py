"""The command line, as its user runs it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tqdm import tqdm
from words import rows as task_rows

from subfit.cli.main import main
from subfit.config import OPTIONS

PLUGIN = """
from subfit.scorer import Scorer
class Mine(Scorer):
    '''The scorer that the test has.'''
    def score(self, calibration):
        return {}
"""
SMALL = ["--calibration.windows", 6, "--calibration.length", 32, "--evaluation.windows", 2]


@pytest.mark.parametrize("write", ["print('x')", "print('x' * 100_000)", "rich.print('x')"])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_stops_is_no_error(write, buffered):
    """As in `subfit list | true`; with a command that imports little."""
    command = f"import sys, types, rich\ndef run(arguments):\n    {write}\n    return 0\n"
    replaced = "sys.modules['subfit.cli.list'] = types.SimpleNamespace(run=run)\n"
    code = f"{command}{replaced}from subfit.cli.main import main\nsys.exit(main(['list']))"
    options = [] if buffered else ["-u"]
    process = subprocess.Popen([sys.executable, *options, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("write", ["print('x')", "print('x' * 100_000)", "rich.print('x')"])
@pytest.mark.parametrize(("shell", "code", "said"), [(">/dev/full", 2, "No space left on device"), (">&-", 0, "")])
def test_a_stdout_that_is_full_is_one_line_and_one_that_is_closed_none(write, shell, code, said):
    command = f"import sys, types, rich\ndef run(arguments):\n    {write}\n    return 0\n"
    replaced = "sys.modules['subfit.cli.list'] = types.SimpleNamespace(run=run)\n"
    script = f"{command}{replaced}from subfit.cli.main import main\nsys.exit(main(['list']))"
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {shell}', sys.executable, script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    wanted = f"subfit list: error: the result cannot be written: [Errno 28] {said}\n" if said else ""
    assert done.stderr == wanted


def test_compress_evaluate_and_reproduce(subfit, model_folder, text_file, tmp_path):
    common = ["--model", model_folder, "--calibration.path", text_file, *SMALL, "--sparsity", 0.5]
    done = subfit("compress", *common, "--output", "one", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)  # nothing else on stdout
    assert record == json.loads((tmp_path / "one" / "compression.json").read_text())
    assert len(record["selected"]) == 4 and set(record["seconds"]) == {"load", "data", "score", "select", "fit", "evaluate"}
    assert [line.rpartition(": ")[0] for line in done.stderr.splitlines()] == [
        f"loading {model_folder}",
        "reading calibration text",
        "scoring 8 submodules",
        "selecting",
        "fitting 4 bypasses",
        "evaluating",
        "writing one",
    ]

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record["configuration"]))
    again = subfit("compress", "--config", "run.yaml", "--output", "two")
    assert again.returncode == 0, again.stderr
    assert "perplexity" in again.stdout and "replaced: " in again.stdout
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    for file in ("config.json", "modeling_subfit.py", "scores.png", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file

    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps(row) for row in task_rows(31)))
    texts = ["--data", f"one={text_file}", text_file, "--in_domain", "one", "--windows", 10, "--length", 32, "--stride", 8]
    asked = ["evaluate", "one", "--reference", model_folder, *texts, "--tasks", "toy.jsonl", "--limit", 30]
    evaluated = subfit(*asked, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    one, text = found["texts"]["one"], found["texts"]["text"]
    assert one | {"in_domain": False} == text and one["in_domain"] and one["tokens"] == 31 + 9 * 8
    assert 0 <= one["agreement"] <= 1 and one["kl"] >= 0 and one["bits_per_byte"] > 0
    for name in ("perplexity", "perplexity_ratio"):
        assert one[f"{name}_interval"][0] <= one[name] <= one[f"{name}_interval"][1]
    task = found["tasks"]["toy"]
    assert task["items"] == 30 and task["difference"] == pytest.approx(task["acc_norm"] - task["reference_acc_norm"])
    assert task["retained_interval"][0] < task["retained"] < task["retained_interval"][1]
    assert found["tasks_mean"]["accuracy"] == task["acc_norm"] and found["calibration"]["windows"] == 6
    assert found["kv_bytes_per_token"] == record["size"]["after"]["kv_bytes_per_token"]
    assert "evaluating on one: " in evaluated.stderr and "answering toy: " in evaluated.stderr


def test_kept_heads_shrink_the_cache_that_compress_and_evaluate_report(subfit, model_folder, text_file):
    bypass = ["--attention_bypass", "kept_heads", "--attention_bypass.share", 0.2, "--attention_bypass.ridge", 0.05]
    common = [
        "--model",
        model_folder,
        "--calibration.path",
        text_file,
        *SMALL,
        "--fitting",
        "sequential",
        "--sparsity",
        0.25,
    ]
    done = subfit("compress", *common, *bypass, "--budget", "kv_bytes", "--output", "heads", "--json")
    assert done.returncode == 0, done.stderr
    size = json.loads(done.stdout)["size"]
    assert size["before"]["kv_bytes_per_token"] == 512 and size["after"]["kv_bytes_per_token"] == 384  # 2 of 8 groups gone
    evaluated = subfit("evaluate", "heads", "--reference", model_folder, "--data", text_file, "--windows", 2, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["kv_bytes_per_token"] == 384
    for options, said in (
        (["--attention_bypass.groups", 2], "groups is 2; it must be less than 2, the key-value heads of attention."),
        (["--attention_bypass.group", 2], "did you mean 'groups'?"),
    ):
        refused = subfit("compress", *common, *bypass, *options, "--output", "none")
        assert refused.returncode == 2 and said in refused.stderr.splitlines()[-1]


def test_evaluate_shows_tables(model_folder, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps(row) for row in task_rows(30)))
    (tmp_path / "greedy.jsonl").write_text(json.dumps({"context": "a", "continuation": "b"}))
    model = str(model_folder)
    assert main(["evaluate", model, "--windows", "2", "--length", "16"]) == 0
    sampled = capsys.readouterr().out
    assert "self" in sampled and "bits per byte" in sampled and "KL" not in sampled and "zero-shot" not in sampled
    assert "No interval for self: at least 10 windows are needed." in sampled
    assert main(["evaluate", model, "--tasks", "toy.jsonl", "greedy.jsonl"]) == 0
    alone = capsys.readouterr().out
    assert "toy" in alone and "mean " in alone and "perplexity" not in alone and "retained" not in alone
    assert "No error and no interval for greedy: at least 30 items are needed." in alone
    assert (
        main(["evaluate", model, "--reference", model, "--data", str(text_file), "--tasks", "toy.jsonl", "--length", "9"])
        == 0
    )
    beside = capsys.readouterr().out
    assert "1.000 [1.000, 1.000]" in beside and "100.0%" in beside and "0.0 ±0.0" in beside and "above chance" in beside
    assert "100.0 [100.0, 100.0]" in beside


def test_self_sampled_runs_with_one_seed_are_equal_and_with_another_are_not(subfit, model_folder, tmp_path, monkeypatch):
    common = ["compress", "--model", str(model_folder), *map(str, SMALL)]
    done = subfit(*common, "--seed", 0, "--output", "a")  # in a process of its own
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    for output, seed in (("b", "0"), ("c", "1")):
        assert main([*common, "--seed", seed, "--output", output]) == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_print_config_is_a_configuration(tmp_path, capsys):
    options = ["--attention_bypass", "low_rank", "--attention_bypass.rank", "7", "--sparsity", "0.375"]
    assert main(["compress", *options, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert yaml.safe_load(printed)["attention_bypass"]["init_args"]["rank"] == 7
    assert main(["compress", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def test_later_configurations_and_options_win(subfit, tmp_path):
    (tmp_path / "a.yaml").write_text("attention_bypass: linear\nsparsity: 0.5\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("sparsity: 0.125\nffn_bypass: {class_path: low_rank, init_args: {rank: 5}}\n")
    done = subfit("compress", "--config", "a.yaml", "--config", "b.yaml", "--seed=4", "--print_config")
    found = yaml.safe_load(done.stdout)
    assert (found["sparsity"], found["seed"], found["attention_bypass"]["class_path"]) == (0.125, 4, "linear")
    assert found["ffn_bypass"]["class_path"] == "low_rank" and found["ffn_bypass"]["init_args"]["rank"] == 5


def test_list(capsys):
    def shown(*arguments: str) -> str:
        assert main(["list", *arguments]) == 0
        return capsys.readouterr().out

    found = json.loads(shown("--json"))
    assert set(found) == {"scorers", "selectors", "bypasses", "presets"}
    low_rank = next(entry for entry in found["bypasses"] if entry["name"] == "low_rank")
    ridge = next(option for option in low_rank["options"] if option["name"] == "ridge")
    assert low_rank["papers"] == ["2606.02559", "2507.01900"] and (ridge["type"], ridge["default"]) == ("float", "0.0001")
    strategies = [entry for kind in ("scorers", "selectors", "bypasses") for entry in found[kind]]
    assert all(entry["description"] and entry["documentation"] for entry in strategies)
    assert all(option["description"] for entry in strategies for option in entry["options"])
    assert list(json.loads(shown("selectors", "--json"))) == ["selectors"]
    assert "\n  per_type " in shown("selectors")
    one = shown("scorers", "subfit")
    assert one.startswith("subfit (scorer)\n\n") and "\n  quantile: float = 0.99\n      " in one
    assert "https://arxiv.org/abs/2606.02559" in one and "Args:" not in one
    assert one.rstrip() in shown("scorers", "--details")
    assert "presets\n  best " in shown() and "presets, related methods\n" in shown("presets")
    assert "sparsity: 0.25" in shown("presets", "uidl") and json.loads(shown("presets", "uidl", "--json"))["presets"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--scorer", "subfitt"], "unknown scorer 'subfitt'; did you mean 'subfit'? available: "),
        (["list", "scorers", "k"], "unknown scorer 'k'"),
        (["list", "kl"], "unknown kind of strategy 'kl'; use scorers, selectors, bypasses or presets"),
        (["compress", "--budget", "watts"], "submodules"),
        (["compress", "--sparsity", "1.5"], "sparsity is 1.5; it must be at least 0 and less than 1"),
        (["compress", "--sparsity", "much"], "sparsity"),
        (["compress", "--fitting", "twice"], "one_shot"),
        (["compress", "--sparsty", "0.5"], "sparsty"),
        (["compress", "--attention_bypass", "low_rank", "--attention_bypass.rang", "3"], "rang"),
        (["compress", "--config", "missing.yaml"], "missing.yaml"),
        (["compress", "--config", "broken.yaml"], "broken.yaml"),
        (["compress", "--config", "list.yaml"], "list.yaml must be a mapping"),
        (["compress", "--model", "missing.gguf"], "the model file missing.gguf does not exist"),
        (["compress", "--model", "{model}", "--output", "."], "the output folder . exists"),
        (["compress", "--model", "{model}", "--output", "broken.yaml/model"], "not a writable folder"),
        (["compress", "--model", "{model}", "--dtype", "float99"], "unknown dtype 'float99'"),
        (["compress", "--model", "{model}", "--device", "gpu"], "the device 'gpu' cannot be used: "),
        (["compress", "--model", "{model}", "--dtype", "float8_e4m3fn"], "unknown dtype 'float8_e4m3fn'; use auto"),
        (["compress", "--model", "{model}", "--device", "meta"], "the device 'meta' cannot be used: "),
        (["compress", "--model", "{model}", "--output", ""], "the value of --output is empty; give one, or leave it out"),
        (["compress", "--model", "{model}", "--calibration.path="], "the value of --calibration.path is empty"),
        (["compress", "--seed", "010"], "seed is '010'; it must be a whole number"),
        (["compress", "--model", "{model}", "--device", "cuda:77"], "the device 'cuda:77' cannot be used: "),
        (["compress", "--model", "{model}", "--calibration.path", "missing.txt"], "text file missing.txt does not exist"),
        (["compress", "--model", "{model}", "--calibration.path", "list.yaml"], "use .txt, .jsonl or .parquet"),
        (["compress", "--model", "{model}", "--calibration.path", "short.txt"], "holds 5 tokens, 0 windows of 512"),
        (["compress", "--model", "nobody/nothing"], "cannot load the model 'nobody/nothing'"),
        (["evaluate", "."], "cannot load the model '.'"),
        (["evaluate", "{model}", "--reference", ""], "the value of reference is empty; give one, or leave it out"),
        (["evaluate", "{model}", "--data", "x="], "the value of path is empty"),
        (["evaluate", "{model}", "--windows", "0"], "at least 1 window"),
        (["evaluate", "{model}", "--batch_size", "0"], "batch_size is 0; it must be at least 1"),
        (["evaluate", "{model}", "--data", "x=missing.txt"], "text file missing.txt does not exist"),
        (["evaluate", "{model}", "--data", "short.txt", "a/short.txt"], "two texts are called 'short'; give them names"),
        (["evaluate", "{model}", "--data", "a=short.txt", "--in_domain", "b"], "there is no text 'b'; the texts are a"),
        (["evaluate", "{model}", "--stride", "3", "--length", "2"], "the stride is 3; it must be at least 1 and at most"),
        (["evaluate", "{model}", "--tasks", "missing.jsonl"], "task file missing.jsonl does not exist"),
        (["evaluate", "{model}", "--tasks", "a.jsonl", "--limit", "0"], "limit is 0; it must be at least 1"),
        (["list", "toys"], "unknown kind of strategy 'toys'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_line_and_exit_code_2(model_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "short.txt").write_text("short")
    assert main([a.replace("{model}", str(model_folder)) for a in arguments]) == 2
    shown = capsys.readouterr()
    line = shown.err.strip().splitlines()[-1]
    assert line.startswith(f"subfit {arguments[0]}: error: ") and message in line
    assert "Traceback" not in shown.err and shown.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml", "list.yaml", "short.txt"]


def test_an_unknown_command_is_one_line(capsys):
    for arguments in ([], ["compres"]):
        assert main(arguments) == 2
        line, *more = capsys.readouterr().err.splitlines()
        assert line.startswith("subfit: error: ") and not more


def test_an_error_ends_the_process_with_code_2(subfit):
    done = subfit("compress", "--sparsity", "1.5")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.endswith("subfit compress: error: sparsity is 1.5; it must be at least 0 and less than 1\n")


def test_debug_shows_the_traceback(subfit):
    done = subfit("compress", "--sparsity", "1.5", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("too_much", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 60)])
def test_a_lack_of_memory_is_one_line(too_much, monkeypatch, capsys):
    monkeypatch.setattr("subfit.cli.evaluate.run", lambda arguments: too_much())
    assert main(["evaluate", "model"]) == 2
    assert capsys.readouterr().err.startswith(
        "subfit evaluate: error: there is not enough memory; give a smaller --batch_size"
    )
    with pytest.raises((MemoryError, RuntimeError)):
        main(["evaluate", "model", "--debug"])


COMMANDS = [
    ["--help"],
    ["list"],
    ["list", "scorers"],
    ["list", "presets"],
    ["list", "--details"],
    ["list", "--plugins", "mine.py"],
    *([command, "--help"] for command in ("compress", "evaluate", "benchmark", "ablate", "report", "list")),
]


def test_lists_and_help_import_nothing_heavy(tmp_path):
    """And are plain lines, which are whole whatever the width of the terminal."""
    (tmp_path / "mine.py").write_text("import torch\n" + PLUGIN)
    code = (
        "import contextlib, io, json, sys\nfrom subfit.cli.main import main\nfound = []\n"
        f"for arguments in {COMMANDS}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main(arguments)\n"
        "    heavy = {'torch', 'torchmetrics', 'lightning', 'transformers', 'wandb', 'datasets'} & set(sys.modules)\n"
        "    found.append([out.getvalue(), sorted(heavy)])\nprint(json.dumps(found))"
    )
    narrow = {**os.environ, "COLUMNS": "30"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=narrow)
    assert done.returncode == 0, done.stderr
    shown = {" ".join(arguments): found for arguments, found in zip(COMMANDS, json.loads(done.stdout), strict=True)}
    assert {command: heavy for command, (_, heavy) in shown.items() if heavy} == {}
    text = shown["list"][0]
    assert "\n  kl " in text and "to the same model with this one site bypassed.\n" in text and "…" not in text
    assert "  mine                   The scorer that the test has.\n" in shown["list --plugins mine.py"][0]
    assert "windows: int = 8" in shown["list --details"][0]
    help_text = shown["compress --help"][0]
    for option in OPTIONS:
        if option != "finetune":
            assert f"  --{option}" in help_text, option
    for option in ("finetune.learning_rate", "finetune.lora.rank", "calibration.windows", "evaluation.column"):
        assert f"  --{option} VALUE\n      " in help_text
    assert "Share of the Attentions, of the other mixers of tokens, and of the FeedForwards, to replace [0.25]" in help_text
    for command in ("evaluate", "benchmark", "ablate", "report"):
        assert "usage: subfit" in shown[f"{command} --help"][0] and "--output" in shown["ablate --help"][0]


def test_a_strategys_name_and_arguments_in_any_order(capsys):
    named, with_ridge = ["--ffn_bypass", "linear"], ["--ffn_bypass.ridge=0.5"]
    for given in ([*named, *with_ridge], [*with_ridge, *named], ["--ffn_bypass.init_args.ridge", "5e-1", *named]):
        assert main(["compress", "--config", "subfit", *given, "--print_config"]) == 0
        read = yaml.safe_load(capsys.readouterr().out)
        assert read["ffn_bypass"] == {"class_path": "linear", "init_args": {"ridge": 0.5, "reads": "input", "prior": "zero"}}
    options = ["--sparsity", "0.5", "--finetune", "{trainer: {max_steps: 7}}", "--finetune.batch_size", "3"]
    assert main(["compress", *options, "--config", "best", "--print_config"]) == 0  # options win over files
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["sparsity"] == 0.5 and (read["finetune"]["trainer"]["max_steps"], read["finetune"]["batch_size"]) == (7, 3)


def test_what_is_no_option_is_refused(capsys):
    for given, message in (
        (["best"], "unexpected argument 'best'"),
        (["--sparsity"], "--sparsity needs a value"),
        (["--sparsity", "--seed", "3"], "--sparsity needs a value"),
        (["--config", "bset"], "no preset and no file 'bset'; did you mean 'best'?"),
    ):
        assert main(["compress", *given]) == 2
        assert message in capsys.readouterr().err


def test_the_process_is_as_before_a_command(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before, init = dict(os.environ), tqdm.__init__
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["evaluate", str(model_folder), "--windows", "1", "--length", "8"]) == 0
    assert main(["evaluate", "missing"]) == 2
    assert dict(os.environ) == before and tqdm.__init__ is init
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
