"""After training: what is measured, asked and exported is the model that was trained."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distrib.cli.compose import compose
from distrib.cli.main import main
from distrib.cli.rundir import make_run_dir
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.inference.export import export
from distrib.inference.texts import read_texts
from distrib.inference.trained import find, load_trained
from distrib.run import run
from distrib.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WORDS = {"money": "bank market share profit", "sport": "match goal team win", "tech": "chip phone code net"}
TEXTS = ["bank profit", "", "goal match win team goal match win team goal", "code 日本語"]


def write_examples(path: Path, *, count: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            label = draw.choice(list(WORDS))
            text = " ".join([*draw.choices(WORDS[label].split(), k=6), str(number)])
            file.write(json.dumps({"text": text, "label": label}) + "\n")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: a two-layer BERT on 160 short texts, 20 steps."""
    folder = tmp_path_factory.mktemp("inference")
    write_examples(folder / "texts.jsonl", count=160)
    settings = {
        "model": "tiny_bert",
        "task": "sequence_classification",
        "data": "table",
        "data.path": folder / "texts.jsonl",
        "data.heldout_fraction": 0.25,
        "optimizer.lr": 0.003,
        "train.steps": 20,
        "train.eval_every": 10,
        "run_dir": folder / "run",
        "cache_dir": folder / "cache",
        "plugins": "[]",
    }
    config = compose([f"{key}={value}" for key, value in settings.items()])
    run_dir = make_run_dir(config)
    run(config, run_dir=run_dir, world=World())
    return run_dir


def distrib(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def scores_of(given: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [list(answer["scores"].values()) for answer in given]


def test_evaluate_says_what_training_said(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out report of the last checkpoint is the one in ``evaluation.json``, count for count."""
    said = json.loads((trained_run / "evaluation.json").read_text())
    code, out, _ = distrib(capsys, "evaluate", trained_run, "--json")
    measured = json.loads(out)
    assert code == 0
    assert measured["checkpoint"].endswith("step-00000020")
    assert measured["confusion"] == said["confusion"]
    assert sum(map(sum, measured["confusion"])) == 40
    assert measured["metrics"] == pytest.approx(said["metrics"], abs=1e-6)


def test_evaluate_prints_a_table(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics in a line and a row per class, with the checkpoint that was measured."""
    code, out, _ = distrib(capsys, "evaluate", trained_run, "--split", "train")
    rows = [line.split() for line in out.splitlines() if line.split()]
    assert code == 0
    assert rows[0][0] == "checkpoint"
    assert rows[1][:2] == ["train", "accuracy"]
    assert {row[0] for row in rows} >= set(WORDS)
    assert sum(int(row[-1]) for row in rows if row[0] in WORDS) == 120


def test_evaluate_on_other_data(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overrides choose other records; the model's own classes and tokenizer stay."""
    other = tmp_path / "other.csv"
    other.write_text("text,label\nbank profit share,money\ngoal win team,sport\nchip code,money\n")
    code, out, _ = distrib(capsys, "evaluate", trained_run, f"data.path={other}", "--split", "all", "--json")
    measured = json.loads(out)
    assert code == 0
    assert [row["support"] for row in measured["classes"]] == [2, 1, 0]


def test_evaluate_refuses_a_label_the_model_never_saw(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File and line of the first such row, and the labels that are known."""
    other = tmp_path / "other.csv"
    other.write_text("text,label\nbank profit share,money\npawn takes,chess\nchip code,money\n")
    code, _, err = distrib(capsys, "evaluate", trained_run, f"data.path={other}", "--split", "all")
    assert code == DataError.exit_code
    assert "other.csv:3" in err
    assert "chess" in err
    assert "money, sport, tech" in err


def test_predict_answers_every_text_in_order(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts first, then files, one JSON object each; the batch size changes no answer beyond rounding."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[1:3]) + "\n")
    (tmp_path / "b.csv").write_text(f'id,body\n1,"{TEXTS[3]}"\n')
    files = [tmp_path / "a.txt", tmp_path / "b.csv", "--text-column", "body"]
    code, out, _ = distrib(capsys, "predict", trained_run, *files, "--text", TEXTS[0])
    one = answers(distrib(capsys, "predict", trained_run, *files, "--text", TEXTS[0], "--batch-size", 1)[1])
    given = answers(out)

    assert code == 0
    assert [answer["text"] for answer in given] == TEXTS
    assert given[0]["label"] == "money"
    assert all(list(answer["scores"]) == sorted(WORDS) for answer in given)
    for row, alone in zip(scores_of(given), scores_of(one), strict=True):
        assert sum(row) == pytest.approx(1)
        assert row == pytest.approx(alone, abs=1e-5)


def test_predict_writes_a_file(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--output`` the answers are in the file and nothing is on the screen."""
    argv = ["predict", trained_run, "--text", "bank", "--output", tmp_path / "out.jsonl"]
    assert distrib(capsys, *argv)[:2] == (0, "")
    assert answers((tmp_path / "out.jsonl").read_text())[0]["text"] == "bank"
    code, _, err = distrib(capsys, *argv[:-1], tmp_path / "absent" / "out.jsonl")
    assert code == ConfigError.exit_code
    assert "--output" in err


@pytest.mark.parametrize(
    ("argv", "said"), [((), "--text"), (("--text", "a", "--batch-size", "0"), "--batch-size")]
)
def test_predict_refuses_what_it_cannot_do(
    trained_run: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    """Nothing to predict, or no room for a text, is an error that names the option."""
    code, out, err = distrib(capsys, "predict", trained_run, *argv)
    assert (code, out) == (ConfigError.exit_code, "")
    assert said in err


def test_an_export_needs_transformers_alone(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder loads with the auto classes, names its labels, and gives the scores ``predict`` gives."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    code, out, _ = distrib(capsys, "export", trained_run, "--output", tmp_path / "exported")
    assert code == 0
    assert f'transformers.AutoModelForSequenceClassification.from_pretrained("{tmp_path}/exported")' in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        shares = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)

    asked = [word for text in TEXTS for word in ("--text", text)]
    of_run = answers(distrib(capsys, "predict", trained_run, *asked)[1])
    of_export = answers(distrib(capsys, "predict", tmp_path / "exported", *asked)[1])
    assert of_export == of_run
    assert model.config.id2label == dict(enumerate(sorted(WORDS)))
    for row, expected in zip(scores_of(of_run), shares.tolist(), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_an_export_overwrites_nothing(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that holds something is refused and left as it is; an empty one is filled."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    code, _, err = distrib(capsys, "export", trained_run, "--output", tmp_path / "mine")
    assert code == ConfigError.exit_code
    assert "--output" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert distrib(capsys, "export", trained_run, "--output", tmp_path / "empty")[0] == 0
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_copy_that_went_wrong_leaves_nothing(trained_run: Path, tmp_path: Path) -> None:
    """What the manifest does not confirm is not given out, and no half folder stays."""
    copy = shutil.copytree(trained_run / "checkpoints" / "step-00000020", tmp_path / "step-00000020")
    model, recipe = find(copy)
    (model / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is not what .*MANIFEST\.json lists"):
        export(model, recipe, output=tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]


def test_the_best_checkpoint_can_be_asked_for(trained_run: Path, tmp_path: Path) -> None:
    """``best`` means the checkpoint that the run marked, the newest one otherwise."""
    copy = shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    (copy / "checkpoints" / "best").unlink()
    (copy / "checkpoints" / "best").symlink_to("step-00000010")
    assert find(copy)[0].parent.name == "step-00000020"
    assert find(copy, best=True)[0].parent.name == "step-00000010"


def test_a_damaged_checkpoint_is_refused(trained_run: Path, tmp_path: Path) -> None:
    """One flipped bit in the weights of the only checkpoint: refused, with the file's name."""
    copy = shutil.copytree(trained_run / "checkpoints" / "step-00000020", tmp_path / "step-00000020")
    (weights,) = (copy / "model").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=weights.name):
        find(copy)


def test_a_damaged_export_is_refused(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder whose configuration was lost is an error that names it, not a traceback."""
    distrib(capsys, "export", trained_run, "--output", tmp_path / "exported")
    (tmp_path / "exported" / "config.json").unlink()
    code, _, err = distrib(capsys, "predict", tmp_path / "exported", "--text", "a")
    assert code == CheckpointError.exit_code
    assert "exported cannot be loaded" in err


def test_an_export_cannot_run_other_code(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe that names a class outside distrib is refused, unless its package is allowed by name."""
    distrib(capsys, "export", trained_run, "--output", tmp_path / "exported")
    recipe = tmp_path / "exported" / "distrib.json"
    values = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**values, "task": {"_target_": "subprocess.Popen", "args": "true"}}))
    folder, found = find(tmp_path / "exported")
    with pytest.raises(ConfigError, match=r"task\._target_=subprocess\.Popen"):
        load_trained(folder, found)
    recipe.write_text("{}")
    with pytest.raises(CheckpointError, match="does not say which task"):
        find(tmp_path / "exported")


def test_texts_are_read_from_every_format(tmp_path: Path) -> None:
    """Lines of a text file, one column of the others."""
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "a.txt").write_text("one\r\n\ntwo, three\n")
    (tmp_path / "a.csv").write_text('text,x\none,1\n,2\n"two, three",3\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two, three"}\n')
    parquet.write_table(pa.table({"text": ["one", "", "two, three"]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.csv", "a.jsonl", "a.parquet"):
        assert list(read_texts(tmp_path / name, column="text")) == ["one", "", "two, three"], name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"body\nx\n", r"a\.csv:2: no text in column 'text' \(--text-column\); its columns: body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl:2: no text in column"),
        ("a.jsonl", b"{oops\n", r"a\.jsonl:1: not JSON"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.pdf", b"", r"a\.pdf: cannot tell its format"),
    ],
)
def test_texts_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """File, line and what would be read instead."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_texts(tmp_path / name, column="text"))


def test_report_makes_the_page_again(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``distrib report`` prints the path of a page that shows the run's classes; no run, no page."""
    (trained_run / "report.html").unlink()
    code, out, _ = distrib(capsys, "report", trained_run)
    assert code == 0
    assert "money taken for" in Path(out.strip()).read_text()
    assert distrib(capsys, "report", trained_run.parent)[0] == DataError.exit_code
