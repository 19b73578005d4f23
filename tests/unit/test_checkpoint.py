"""Checkpoint folders: whole or refused, never half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distrib.checkpoint import (
    MANIFEST,
    CheckpointFolder,
    find_checkpoint,
    leave_digests,
    newest_whole,
    verify,
)
from distrib.errors import CheckpointError
from distrib.parallel.state import entry
from distrib.state import StateWriter


def save(root: Path, step: int, *, best: bool = False, keep_last: int = 2, keep_best: bool = True) -> Path:
    checkpoints = CheckpointFolder(root, keep_last=keep_last, keep_best=keep_best)
    folder = checkpoints.begin(step)
    writer = StateWriter(folder, rank=0, size=1)
    writer.write("model", [entry("w", torch.full((1000,), float(step)))])
    leave_digests(folder, writer.written, rank=0)
    (folder / "trainer.json").write_text("{}")
    return checkpoints.commit(step, best=best)


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_what_was_saved_verifies(tmp_path: Path) -> None:
    """A finished checkpoint lists every file it has."""
    folder = save(tmp_path, 5)
    verify(folder)
    assert folder.name == "step-00000005"
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "model", "trainer.json"]


@pytest.mark.parametrize("name", ["model/model.safetensors", "trainer.json"])
def test_every_flipped_byte_is_seen(tmp_path: Path, name: str) -> None:
    """An altered file is refused by name, at its first byte, its last and one in between."""
    folder = save(tmp_path, 5)
    path = folder / name
    original = path.read_bytes()
    for position in (0, len(original) // 2, len(original) - 1):
        damaged = bytearray(original)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=path.name):
            verify(folder)
    path.write_bytes(original)
    verify(folder)


def test_missing_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A file may neither be absent, nor short, nor be there without being listed."""
    folder = save(tmp_path, 5)
    weights = folder / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        verify(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        verify(folder)
    weights.write_bytes(content)
    (folder / "model" / "extra.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"extra\.safetensors is not part"):
        verify(folder)


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path: Path) -> None:
    """The newest whole checkpoint is used and the damaged one named."""
    save(tmp_path / "checkpoints", 1)
    newest = save(tmp_path / "checkpoints", 2)
    (newest / "trainer.json").write_text("{ }")
    said: list[str] = []
    assert find_checkpoint(tmp_path, notice=said.append).name == "step-00000001"
    assert len(said) == 1
    assert "step-00000002" in said[0]


def test_a_save_that_was_killed_leaves_nothing_to_load(tmp_path: Path) -> None:
    """Without a manifest a folder is no checkpoint, and the next run sweeps it away."""
    checkpoints = CheckpointFolder(tmp_path, keep_last=2, keep_best=True)
    checkpoints.clean()
    folder = checkpoints.begin(3)
    StateWriter(folder, rank=0, size=1).write("model", [entry("w", torch.ones(3))])
    assert newest_whole(tmp_path, notice=pytest.fail) is None
    checkpoints.clean()
    assert not folder.exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    """keep_last counts from the end; the best survives however old it is."""
    for step in range(1, 7):
        save(tmp_path, step, best=step == 2)
    assert steps(tmp_path) == [2, 5, 6]
    assert find_checkpoint(tmp_path / "best").name == "step-00000002"


def test_a_better_one_replaces_the_best(tmp_path: Path) -> None:
    """Only one best is kept, and none where that is switched off."""
    for step in range(1, 7):
        save(tmp_path / "a", step, best=step in (2, 3))
        save(tmp_path / "b", step, best=step in (2, 3), keep_best=False)
    assert steps(tmp_path / "a") == [3, 5, 6]
    assert steps(tmp_path / "b") == [5, 6]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    """A run that was resumed from an older checkpoint may come by the same step again."""
    save(tmp_path, 4)
    verify(save(tmp_path, 4))
    assert steps(tmp_path) == [4]


def test_nothing_to_load_is_said(tmp_path: Path) -> None:
    """A run directory without checkpoints names the place that was searched."""
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        find_checkpoint(tmp_path)
