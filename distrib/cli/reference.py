"""What ``distrib train --help`` says: every group with its options, every setting with its meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from distrib import config
from distrib.cli.groups import GROUPS, TARGETS, options

EXAMPLES = """\
examples:
  distrib train experiment=news strategy=ddp launcher.num_processes=2
  distrib train experiment=news optimizer.lr=5e-5 train.global_batch_size=64
  distrib train experiment=news --dry-run                       what would run, and how
  distrib train experiment=news -m optimizer.lr=1e-5,3e-5       one run per value
  distrib train experiment=news -m sweep=optuna 'optimizer.lr=tag(log, interval(1e-5,1e-3))'
  distrib train -m resume=multirun/latest                       go on with a sweep that was stopped
  distrib train experiment=news tracking=[tensorboard,wandb]
  distrib train resume=runs/latest                              go on where it stopped
  distrib train --config-dir my/conf strategy=mine plugins=[my_package]
  torchrun --nproc-per-node 2 -m distrib train experiment=news strategy=ddp
"""

WIDTH = 110


def settings_help() -> str:
    """Examples, groups and settings, as one text."""
    return "\n".join([EXAMPLES, *_groups(), "", *_settings()])


def _groups() -> Iterator[str]:
    yield "groups, chosen as group=option (the keys of an option: --dry-run shows them):"
    for group in GROUPS:
        yield f"  {group}"
        for name, summary in options(group).items():
            yield _entry(f"    {name}", summary)


def _settings() -> Iterator[str]:
    yield "settings, given as key=value:"
    sections = {name: body for name, body in _classes() if name.endswith("Config")}
    run = sections.pop("RunConfig")
    groups = {*TARGETS, "tracking", "choices"}
    for key, default, meaning in _fields(run):
        section = sections.get(f"{key.capitalize()}Config")
        if section is not None:
            for name, value, text in _fields(section):
                yield _entry(f"  {key}.{name}={value}", text)
        elif key not in groups:
            yield _entry(f"  {key}={default}", meaning)


def _entry(left: str, right: str) -> str:
    indent = " " * 36
    lines = textwrap.wrap(right.replace("``", ""), width=WIDTH - len(indent)) or [""]
    gap = left.ljust(len(indent)) if len(left) < len(indent) else f"{left}\n{indent}"
    return f"\n{indent}".join([gap + lines[0], *lines[1:]]).rstrip()


def _classes() -> Iterator[tuple[str, list[ast.stmt]]]:
    """The classes of the configuration: the text below a field is not there at run time, so it is read."""
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node.body


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    """Name, default and the first paragraph below, of each field in a class body."""
    for field, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        described = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        meaning = str(below.value.value) if described else ""  # type: ignore[union-attr]
        yield field.target.id, _default(field.value), " ".join(meaning.split())


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "..."
    text = ast.unparse(value)
    return {"None": "null", "True": "true", "False": "false", "()": "[]"}.get(text, text.strip("'"))
