"""What ranks tell each other at the store, signed with the job's token.

Whoever reaches the port can read and write there: the store itself asks for no password. So names are
derived from the token, and a value is checked before anything in it is read. A job that nobody
gave a token to (a direct start under somebody else's launcher) trusts its network.
"""

from __future__ import annotations

import hashlib
import hmac

from distrib.errors import LaunchError


def room(token: str) -> str:
    """Where the job's names lie: not to be guessed without the token."""
    return _sign(token, "room", "")[:16] if token else "open"


def sealed(text: str, *, token: str, name: str) -> str:
    """``text`` with a signature that holds for this name and this job."""
    return f"{_sign(token, name, text)} {text}"


def opened(value: bytes, *, token: str, name: str) -> str:
    """The text in ``value``. Raises `LaunchError` where it was not sealed with this token and name."""
    signature, _, text = value.decode(errors="replace").partition(" ")
    if not hmac.compare_digest(signature.encode(), _sign(token, name, text).encode()):
        raise LaunchError(f"'{name}' at the store is not signed with this job's token: it is another job's")
    return text


def _sign(token: str, name: str, text: str) -> str:
    return hmac.new(token.encode(), f"{name}\0{text}".encode(), hashlib.sha256).hexdigest()
