"""Running git: its environment, credentials, time limits, and what its complaints mean.

Belongs here: everything that reaches a git process. Does not: which commands make a commit (`repository`).

A token is given to git in the environment of the three commands that talk to the remote, through a credential helper
that git starts itself. It is on no command line, in no file, and cut from whatever git says. No command can ask a person.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from gen404_dagster.errors import OperatorError, Unavailable

ASK_SECONDS = 120.0
TRANSFER_SECONDS = 900.0
STALL_SECONDS = 60
"""A transfer over http that moves no byte for so long is given up."""

REMOTE = "state"
"""The remote's name in the mirror; its address is told to each command, not kept."""

TIMED_OUT = 124

_HELPER = '!f() { test "$1" = get && echo username=x-access-token && echo "password=$GEN404_GIT_TOKEN"; }; f'

_LOST_RACE = re.compile(
    r"fetch first|non-fast-forward|stale info|failed to update ref|cannot lock ref|failed to lock|incorrect old value"
    r"|reference already exists"
)
_RATE_LIMITED = re.compile(r"rate.?limit|too many requests|error: 429", re.I)
_FAILED_THERE = re.compile(r"internal server error|unpacker error|timed? ?out|temporarily", re.I)
_PROTECTED = re.compile(r"protected branch|GH006|GH013|rule violations", re.I)
_NO_REPOSITORY = re.compile(
    r"does not appear to be a git repository|not a git repository|repository .*not found|does not exist|error: 404",
    re.I,
)
_NO_ACCESS = re.compile(
    r"authentication failed|could not read (username|password)|permission .*denied|access denied|error: 40[13]"
    r"|write access .* not granted|dubious ownership|host key verification failed|unsupported protocol"
    r"|unable to find remote helper|support for password authentication was removed",
    re.I,
)
_DISK = re.compile(r"no space left on device|disk quota exceeded|read-only file system", re.I)
_DAMAGED = re.compile(
    r"is corrupt|bad object|missing (blob|tree|commit|object)|inflate: |loose object|packfile .* cannot|unable to parse",
    re.I,
)
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]*@", re.I)


def check_remote(remote: str, token: str = "") -> None:
    """Raise OperatorError for an address that holds credentials, or that would send the token in clear text."""
    if "://" not in remote:
        return
    try:
        url = urlsplit(remote)
        is_address = url.port is None or url.port > 0
    except ValueError:
        is_address = False
    if not is_address:  # outside of `except`: tracebacks are stored, and what is no port may be a password
        raise OperatorError("GEN404_STATE_REPO is not an address: it looks like https://github.com/OWNER/NAME")
    if url.password is not None or (url.scheme in ("http", "https") and url.username is not None):
        raise OperatorError(
            "GEN404_STATE_REPO holds credentials, which logs and process lists would show: take out what stands before "
            f"the @ ({without_credentials(remote)}) and set GITHUB_TOKEN"
        )
    if token and url.scheme == "http" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise OperatorError(f"GITHUB_TOKEN is not sent in clear text to {remote}: name it by https")


class Git:
    """git on one mirror, for one remote. Thread-safe: it keeps nothing."""

    def __init__(self, remote: str, mirror: Path, token: str = "", ssh_key: str = "") -> None:
        check_remote(remote, token)
        self.remote = _absolute(remote)
        self.is_path = not _is_address(self.remote)
        self.display = without_credentials(self.remote)
        self.mirror = mirror
        self._token = token
        ssh = "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o StrictHostKeyChecking=accept-new"
        if ssh_key:
            ssh += f" -o IdentitiesOnly=yes -i {shlex.quote(ssh_key)}"
        self.environment = {
            "GIT_DIR": str(mirror),
            "GIT_OBJECT_DIRECTORY": str(mirror / "objects"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_LAZY_FETCH": "1",  # a reader that went to the network by itself would know neither limit nor token
            "GIT_ASKPASS": os.environ.get("GIT_ASKPASS", "true"),
            "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", ssh),
        }

    def __call__(self, *arguments: str, timeout: float = ASK_SECONDS) -> tuple[int, str, str]:
        """Run a command on the mirror: exit status, output, complaints."""
        return self._run(arguments, self.environment, timeout, "", own_group=False)

    def ask(self, *arguments: str, timeout: float = ASK_SECONDS, given: str = "") -> tuple[int, str, str]:
        """Run a command that talks to the remote, which it calls `REMOTE`. What it says is free of secrets."""
        settings = {
            f"remote.{REMOTE}.url": self.remote,
            "http.lowSpeedLimit": "1",
            "http.lowSpeedTime": str(STALL_SECONDS),
        }
        pairs = list(settings.items())
        environment = {**self.environment, "GIT_NO_LAZY_FETCH": "0"}
        if self._token and self.remote.startswith(("https://", "http://")):
            environment["GEN404_GIT_TOKEN"] = self._token
            helper = f"credential.{_origin(self.remote)}.helper"
            pairs += [(helper, ""), (helper, _HELPER)]  # the empty one takes out a person's own helpers
        environment |= _as_environment(pairs)
        status, out, err = self._run(arguments, environment, timeout, given, own_group=not self.is_path)
        return status, out, self._scrubbed(err)

    def _run(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], timeout: float, given: str, own_group: bool
    ) -> tuple[int, str, str]:
        with subprocess.Popen(
            ["git", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **environment},
            encoding="utf-8",
            errors="surrogateescape",
            process_group=0 if own_group else None,
        ) as process:
            try:
                out, err = process.communicate(given, timeout)
                return process.returncode, out, err
            except subprocess.TimeoutExpired:
                return TIMED_OUT, "", f"git {arguments[0]} was given up after {timeout:.0f} s"
            finally:
                if process.poll() is None:
                    if own_group:  # the helpers that hold the connection too
                        with suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)
                    process.kill()

    # Complaints

    def fault(self, err: str) -> OperatorError | Unavailable:
        """What git's complaint means: an operator's matter, or worth another try."""
        said = self.one_line("", err)
        if _RATE_LIMITED.search(err):
            return Unavailable(f"{self.display} limits the rate of requests: {said}")
        if _NO_ACCESS.search(err):
            return OperatorError(f"{self.display} refuses access: {self._how_to_get_in(err)} ({said})")
        if _DISK.search(err):
            return Unavailable(f"{self.mirror} cannot be written: {said}")
        if _DAMAGED.search(err):
            return OperatorError(f"damaged objects: delete {self.mirror}, it is only a copy ({said})")
        if _NO_REPOSITORY.search(err):
            hint = "" if self.is_path else ", and see that the credentials may read it"
            return OperatorError(f"{self.display} is not a git repository: set GEN404_STATE_REPO{hint} ({said})")
        return Unavailable(f"{self.display} does not answer: {said}")

    def refusal(self, answer: str, branch: str, err: str) -> OperatorError | Unavailable | None:
        """What the remote's answer to a push means; None when another writer was faster."""
        said = self.one_line(answer, err)
        if _LOST_RACE.search(answer):
            return None
        if _PROTECTED.search(answer + err):
            return OperatorError(
                f"{self.display} protects {branch} against these commits: let the pipeline's account bypass the rule, "
                f"or set GEN404_STATE_BRANCH ({said})"
            )
        if _FAILED_THERE.search(answer) or _RATE_LIMITED.search(answer + err):
            return Unavailable(f"{self.display} failed to take a commit: {said}")
        return OperatorError(f"{self.display} refuses commits to {branch}: {said}")

    def _how_to_get_in(self, err: str) -> str:
        if re.search("host key verification failed", err, re.I):
            return "its host key is not the one in known_hosts; compare it with the published one"
        if self.remote.startswith(("https://", "http://")):
            if not self._token:
                return "set GITHUB_TOKEN to a token with the permission Contents: read and write"
            return "GITHUB_TOKEN is wrong, expired, or lacks the permission Contents: read and write"
        if not self.is_path:
            return "set GEN404_GIT_SSH_KEY to the file of a key that may write to it"
        return "check its address and credentials"

    def one_line(self, answer: str, err: str) -> str:
        """What git said, without credentials, short."""
        lines = [answer, *(line.strip() for line in err.splitlines())]
        return self._scrubbed("; ".join(line for line in lines if line) or "git gave no reason")[:300]

    def _scrubbed(self, text: str) -> str:
        return without_credentials(text.replace(self._token, "***") if self._token else text)


def without_credentials(text: str) -> str:
    return _CREDENTIALS.sub(r"\1", text)


def _as_environment(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Settings of git as environment, after those that the operator gave in the same way."""
    given = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(given) if given.isdecimal() else 0
    values: dict[str, str] = {}
    for number, (key, value) in enumerate(pairs, first):
        values |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {**values, "GIT_CONFIG_COUNT": str(first + len(pairs))}


def _origin(remote: str) -> str:
    url = urlsplit(remote)
    return f"{url.scheme}://{url.netloc}"


def _is_address(remote: str) -> bool:
    """A URL of another machine, or `user@host:path`, the short form of ssh."""
    return ("://" in remote and not remote.startswith("file://")) or re.match(r"[^/:]+:(?!//)", remote) is not None


def _absolute(remote: str) -> str:
    if Path(remote).exists() or not ("://" in remote or _is_address(remote)):
        return os.path.abspath(Path(remote).expanduser())  # noqa: PTH100 (links stay as they are)
    return remote
