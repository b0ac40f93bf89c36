"""What the service is told at its start, and the token that it asks for."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from slimsweep.errors import RefusedInput
from slimsweep.storage import Folder

HOST, PORT = "127.0.0.1", 8266  # one above Ray's dashboard
SHORTEST_TOKEN = 16  # characters: a shorter one can be guessed
LARGEST_REQUEST = 1 << 20  # bytes
LOOK_SECONDS = 2.0
MAKE_ONE = "`ray get-auth-token --generate` makes one"

Reading = Literal["open", "token"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service is told at its start."""

    output: str  # the folder that holds run folders, as --output of a sweep
    token: str = field(default="", repr=False)  # empty: nobody may act
    reading: Reading = "open"  # whether reading asks for the token too
    host: str = HOST
    port: int = PORT
    names: tuple[str, ...] = ()  # further names under which people reach the service, such as that of a proxy before it
    largest_request: int = LARGEST_REQUEST  # bytes of the body of a request
    look_every: float = LOOK_SECONDS  # seconds between two looks at the folder, at least; only while somebody reads


def settings_from(
    output: str,
    *,
    host: str = HOST,
    port: int = PORT,
    token_file: str | None = None,
    reading: Reading | None = None,
    names: tuple[str, ...] = (),
) -> Settings:
    """The settings of a service, with the token that was found.

    Args:
        token_file: holds the token; where not given, it is Ray's own (`found_token`).
        reading: whether reading asks for the token; where not given, only on other addresses than this machine's own.

    Raises:
        RefusedInput: the folder does not exist, the token is missing where it is needed, or it is too short.
    """
    folder = Folder(output)
    if folder.is_local and not folder.is_folder:
        raise RefusedInput(f"{folder.uri} is no folder: give the folder that --output of a sweep names, such as runs")
    if not 1 <= port <= 65535:
        raise RefusedInput(f"--port is {port}: give one from 1 to 65535, such as {PORT}")
    token = found_token(token_file)
    local = is_loopback(host)
    if not local and not token:
        raise RefusedInput(
            f"--host is {host}, which other machines reach, and there is no token that would keep strangers out: give "
            f"--token-file FILE, or a token in ~/.ray/auth_token ({MAKE_ONE}), or leave --host out"
        )
    if reading == "token" and not token:
        raise RefusedInput(f"--reading is token, and there is no token: give --token-file FILE; {MAKE_ONE}")
    return Settings(
        output=output,
        token=token,
        reading=reading or ("open" if local else "token"),
        host=host,
        port=port,
        names=names,
    )


def found_token(file: str | None = None) -> str:
    """The token in a file, or else Ray's: of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; empty where none is.

    Raises:
        RefusedInput: a file that was named cannot be read, or the token is too short.
    """
    if file is not None:
        return _long_enough(_read(file, "--token-file"), file)
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _long_enough(token, "RAY_AUTH_TOKEN")
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH", "").strip():
        return _long_enough(_read(path, "RAY_AUTH_TOKEN_PATH"), path)
    own = Path.home() / ".ray" / "auth_token"
    return _long_enough(_read(str(own), str(own)), str(own)) if own.exists() else ""


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _read(path: str, said_by: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise RefusedInput(f"{said_by} names {path}, which cannot be read ({reason}): give a file with the token") from problem


def _long_enough(token: str, source: str) -> str:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise RefusedInput(
            f"the token of {source} has {len(token)} characters: give one of at least {SHORTEST_TOKEN} letters and digits; "
            f"{MAKE_ONE}"
        )
    return token
