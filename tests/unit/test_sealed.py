"""What ranks tell each other holds for their own job and under its own name, checked before it is read."""

from __future__ import annotations

import pytest

from distrib.errors import LaunchError
from distrib.sealed import opened, room, sealed
from distrib.world import World


def test_what_is_sealed_can_be_opened() -> None:
    """With the same token and name, any text comes back."""
    for token in ("", "secret"):
        assert opened(sealed("a b\nü", token=token, name="x").encode(), token=token, name="x") == "a b\nü"


@pytest.mark.parametrize(
    "value",
    [
        sealed("1", token="other", name="x"),
        sealed("1", token="secret", name="y"),
        "1",
        "",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
    ids=["another token", "another name", "unsigned", "empty", "bytes"],
)
def test_what_was_sealed_elsewhere_is_refused(value: str) -> None:
    """Another job's value, one moved to another name, and a stranger's."""
    with pytest.raises(LaunchError, match="not signed with this job's token"):
        opened(value.encode(), token="secret", name="x")


def test_names_are_not_to_be_guessed() -> None:
    """Two jobs use different names at a store, and the token is not among them."""
    assert room("a") != room("b")
    assert "secret" not in room("secret")


def test_the_token_is_not_shown() -> None:
    """A world that is printed, in a log or a traceback, keeps its secret."""
    world = World.from_env(
        {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "DISTRIB_TOKEN": "s3cret",
        }
    )
    assert world.token == "s3cret"
    assert "s3cret" not in repr(world)
