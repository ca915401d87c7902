"""The state repository on another machine: git over HTTP with a token, ssh, partial clones, and a network that fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.resources.state_repo import Change, StateRepository, Step
from gen404_dagster.resources.state_repo import git as running
from gen404_dagster.settings import load_settings
from tests.resources.git_server import TOKEN, GitServer, git_server
from tests.resources.test_state_repo import git, write_with_git, writes


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """A server of `competition.git`; `clone` beside it is a person's, who reaches the repository by its path."""
    folder = tmp_path / "served"
    bare = folder / "competition.git"
    git("init", "-q", "--bare", "-b", "main", str(bare), at=tmp_path)
    for name in ("uploadpack.allowFilter", "http.receivepack"):
        git("config", name, "true", at=bare)
    git("clone", "-q", str(bare), str(tmp_path / "clone"), at=tmp_path)
    for path in ("rounds/0/a.json", "rounds/0/5AB/b.json", "rounds/1/c.json", "state.json", "config.json"):
        file = tmp_path / "clone" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    write_with_git_first(tmp_path / "clone")
    with git_server(folder) as running_server:
        yield running_server


def write_with_git_first(clone: Path) -> None:
    git("add", "-A", at=clone)
    git("commit", "-qm", "Start the competition", at=clone)
    git("push", "-q", "origin", "HEAD:main", at=clone)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def repository(server: GitServer, data: Path) -> Iterator[StateRepository]:
    with opened(server, data) as one:
        yield one


def opened(server: GitServer, data: Path, token: str = TOKEN) -> StateRepository:
    return StateRepository(f"{server.url}/competition.git", data / "state.git", token=token)


def subjects(server: GitServer) -> list[str]:
    bare = server.folder / "competition.git"
    assert git("fsck", "--strict", "--no-dangling", at=bare) == ""
    assert git("log", "--min-parents=2", "main", at=bare) == "", "the log is not linear"
    return git("log", "--reverse", "--format=%s", "main", at=bare).splitlines()[1:]


def show(server: GitServer, path: str) -> str:
    return git("show", f"main:{path}", at=server.folder / "competition.git")


def result(number: int, text: str = "") -> tuple[Step, Change]:
    """A result, which touches no stage."""
    return Step(1, "match", f"i{number}"), Change({f"rounds/1/{number}.json": text or str(number)}, f"Result {number}")


def add(repository: StateRepository, number: int, text: str = "") -> str | None:
    step, change = result(number, text)
    path = f"rounds/1/{number}.json"
    info = repository.commit(step, lambda head: None if head.exists(path) else change)
    return info.sha if info else None


# The token


def test_a_token_lets_in_to_read_and_to_write(repository: StateRepository, server: GitServer) -> None:
    assert repository.head().read("state.json") == "state.json"
    assert add(repository, 1) is not None
    assert (subjects(server), repository.head().read("rounds/1/1.json")) == (["Result 1"], "1")


def test_refusals_name_what_to_change(server: GitServer, data: Path) -> None:
    for token, says in [
        ("ghp_wrongSecret", "GITHUB_TOKEN is wrong, expired, or lacks the permission Contents: read and write"),
        ("", "set GITHUB_TOKEN to a token with the permission Contents: read and write"),
    ]:
        with opened(server, data, token) as one, pytest.raises(OperatorError, match=says) as caught:
            one.head()
        assert "ghp_wrongSecret" not in f"{caught.value}"
    for status, kind, says in [
        (403, OperatorError, "lacks the permission"),
        (404, OperatorError, "set GEN404_STATE_REPO, and see that the credentials may read it"),
        (429, Unavailable, "limits the rate"),
        (503, Unavailable, "does not answer"),
    ]:
        server.answer = status
        with opened(server, data) as one, pytest.raises(kind, match=says):
            one.head()
    server.answer = 0
    with (
        StateRepository(f"{server.url}/other.git", data / "o.git", token=TOKEN) as one,
        pytest.raises(OperatorError, match=r"other\.git is not a git repository: set GEN404_STATE_REPO"),
    ):
        one.head()
    with (
        StateRepository("https://no-such-host.invalid/a/b", data / "n.git", token=TOKEN) as one,
        pytest.raises(Unavailable, match="no-such-host"),
    ):
        one.head()


@pytest.mark.parametrize(
    ("hook", "kind", "says"),
    [
        ("echo 'error: GH006: Protected branch update failed for refs/heads/main.'; exit 1", OperatorError,
         "protects main against these commits: let the pipeline's account bypass the rule"),
        ("echo 'Only on weekdays.'; exit 1", OperatorError, "refuses commits to main.*hook declined.*Only on weekdays"),
        ("echo 'API rate limit exceeded, try later'; exit 1", Unavailable, "failed to take a commit"),
    ],
)  # fmt: skip
def test_a_push_that_the_server_declines_is_told_in_its_words(
    repository: StateRepository, server: GitServer, hook: str, kind: type[Gen404Error], says: str
) -> None:
    script = server.folder / "competition.git/hooks/pre-receive"
    script.write_text(f"#!/bin/sh\n{hook}\n")
    script.chmod(0o755)
    with pytest.raises(kind, match=says):
        repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    assert subjects(server) == []
    script.unlink()
    repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    assert subjects(server) == ["Advance"]


def test_a_probe_pushes_and_leaves_nothing_or_says_why_not(repository: StateRepository, server: GitServer) -> None:
    bare = server.folder / "competition.git"
    (bare / "hooks/post-receive").write_text(f"#!/bin/sh\ncat >> {bare}/pushed\n")
    (bare / "hooks/post-receive").chmod(0o755)
    repository.probe()
    pushes = (bare / "pushed").read_text().splitlines()
    assert [line.split()[2].startswith("refs/heads/gen404-doctor-") for line in pushes] == [True, True]
    assert git("for-each-ref", "--format=%(refname)", at=bare) == "refs/heads/main\n"
    (bare / "hooks/pre-receive").write_text("#!/bin/sh\nexit 1\n")
    (bare / "hooks/pre-receive").chmod(0o755)
    with pytest.raises(OperatorError, match="refuses commits to gen404-doctor"):
        repository.probe()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://ghp_abc123@github.com/a/b", r"holds credentials.*https://github.com/a/b.*set GITHUB_TOKEN"),
        ("https://robot:ghp_abc123@github.com/a/b.git", "holds credentials"),
        ("ssh://git:ghp_abc123@github.com/a/b.git", "holds credentials"),
        ("https://robot:ghp_@abc123@github.com/a/b.git", r"holds credentials.*\(https://github.com/a/b.git\)"),
        ("https://robot:ghp_/abc123@github.com/a/b.git", "GEN404_STATE_REPO is not an address: it looks like"),
        ("https://[abc123/a/b", "GEN404_STATE_REPO is not an address"),
        ("http://github.com/a/b.git", "GITHUB_TOKEN is not sent in clear text to http://github.com"),
    ],
)
def test_addresses_that_would_show_a_secret_are_refused_before_any_work(
    address: str, says: str, tmp_path: Path
) -> None:
    for attempt in (
        lambda: StateRepository(address, tmp_path / "data/state.git", token=TOKEN),
        lambda: build_resources(load_settings(state_repo=address, data=tmp_path / "data", github_token=TOKEN)),
    ):
        with pytest.raises(OperatorError, match=says) as caught:
            attempt()
        assert "abc123" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_the_token_is_nowhere_to_be_seen(
    server: GitServer, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in process lists, files, logs or errors, whatever fails; nor in what Dagster shows of the configuration."""
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    settings = load_settings(state_repo=f"{server.url}/competition.git", data=data)
    part = build_resources(settings)["state"]
    assert TOKEN not in f"{part!r}{part.model_dump_json()}{settings!r}"
    assert part.get().head().read("state.json") == "state.json"  # type: ignore[attr-defined]

    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                seen.add(" ".join(process.cmdline()))
            except psutil.Error:
                continue

    def watch() -> None:
        while not done.is_set():
            look()

    server.during = look  # a busy machine may not come to watch in time
    watching = threading.Thread(target=watch)
    watching.start()
    said: list[str] = []
    caplog.set_level("DEBUG")
    with opened(server, data) as one:
        one.head().read("rounds/0/5AB/b.json")
        for number, fails in enumerate(["", "cut", "deny", "down"]):
            server.cut_pushes = "before" if fails == "cut" else ""
            server.token = "another" if fails == "deny" else TOKEN
            if fails == "down":
                server.stop()
            try:
                add(one, number)
                one.head()
            except Gen404Error as error:
                said.append(f"{error!r} {error.__cause__!r} {error.__context__!r}")
    done.set()
    watching.join()
    assert any("push" in line for line in seen), "no push was seen: the test proves nothing"
    assert any("remote-http" in line for line in seen)
    secrets = [TOKEN, "Basic "]
    assert [line for line in [*seen, *said, caplog.text] for secret in secrets if secret in line] == []
    assert len(said) >= 1
    files = [path for path in data.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_nobody_is_asked_and_nothing_hangs(server: GitServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_ASKPASS", raising=False)
    began = time.monotonic()
    with opened(server, data, "") as one, pytest.raises(OperatorError, match="GITHUB_TOKEN"):
        one.head()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never says a word
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.git"
        monkeypatch.setattr(running, "STALL_SECONDS", 1)
        with StateRepository(address, data / "a.git") as one, pytest.raises(Unavailable, match="too slow"):
            one.head()
        monkeypatch.setattr(running, "STALL_SECONDS", 60)
        ask = running.Git(address, data / "a.git").ask
        assert ask("ls-remote", running.REMOTE, timeout=0.5)[2] == "git ls-remote was given up after 0 s"
    assert time.monotonic() - began < 60


# A network that fails


def test_results_wait_for_the_network_and_are_pushed_in_order(
    repository: StateRepository, server: GitServer, data: Path
) -> None:
    online = repository.head().commit
    server.stop()
    waiting = [add(repository, number) for number in range(3)]
    assert add(repository, 1) is None, "decide sees what waits"
    assert repository.head().commit == repository.head(fetch=False).commit == waiting[-1] != online
    assert repository.head().read("rounds/1/0.json") == "0"
    assert [info.sha for info in repository.waiting()] == waiting
    with opened(server, data) as later:  # as after a restart
        assert later.head().commit == waiting[-1]
    assert subjects(server) == []
    server.start()
    assert repository.head().commit == waiting[-1]
    assert subjects(server) == ["Result 0", "Result 1", "Result 2"]
    assert repository.waiting() == []


def test_the_next_commit_goes_behind_those_that_wait(repository: StateRepository, server: GitServer) -> None:
    repository.head()
    server.stop()
    add(repository, 1)
    server.start()
    repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    assert subjects(server) == ["Result 1", "Advance"]


def test_a_transition_never_waits(repository: StateRepository, server: GitServer) -> None:
    repository.head()
    server.stop()
    for _ in range(2):
        with pytest.raises(Unavailable, match="'Advance' is decided again when it answers"):
            repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
        with pytest.raises(Unavailable, match="does not answer"):
            repository.head()
    add(repository, 1)
    with pytest.raises(Unavailable):
        repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    server.start()
    repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    assert subjects(server) == ["Result 1", "Advance"]


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_push_whose_connection_is_cut_is_neither_lost_nor_doubled(
    repository: StateRepository, server: GitServer, tmp_path: Path, cut: str
) -> None:
    """`after`: git has taken it, and nobody was told; then somebody else commits on top of it."""
    repository.head()
    server.cut_pushes = cut
    assert add(repository, 1) is not None
    assert add(repository, 2) is not None
    server.cut_pushes = ""
    write_with_git(tmp_path / "clone", "rounds/1/source_audit.json", "[]", "Review sources")
    assert repository.head().read("rounds/1/2.json") == "2"
    assert repository.head().read("rounds/1/source_audit.json") == "[]"
    assert sorted(subjects(server)) == ["Result 1", "Result 2", "Review sources"]
    assert [s for s in subjects(server) if s != "Review sources"] == ["Result 1", "Result 2"]
    assert repository.waiting() == []


def test_what_waits_is_put_on_a_branch_that_moved_on(
    repository: StateRepository, server: GitServer, tmp_path: Path
) -> None:
    repository.head()
    server.stop()
    shas = [add(repository, 1), add(repository, 2)]
    write_with_git(tmp_path / "clone", "rounds/1/source_audit.json", "[]", "Review sources")
    server.start()
    head = repository.head()
    assert subjects(server) == ["Review sources", "Result 1", "Result 2"]
    assert [head.read(f"rounds/1/{name}.json") for name in ("1", "2", "source_audit")] == ["1", "2", "[]"]
    assert [info.step for info in head.log(2)] == ["1/match/i2", "1/match/i1"]
    assert head.commit not in shas


def test_a_step_that_another_pipeline_has_done_meanwhile_is_dropped(
    repository: StateRepository, server: GitServer, tmp_path: Path
) -> None:
    repository.head()
    server.stop()
    add(repository, 1, "ours")
    add(repository, 2)
    with StateRepository(str(server.folder / "competition.git"), tmp_path / "other/state.git") as other:
        add(other, 1, "theirs")
    server.start()
    repository.head()
    assert (subjects(server), show(server, "rounds/1/1.json")) == (["Result 1", "Result 2"], "theirs")


@pytest.mark.parametrize("path", ["rounds/1/1.json", "state.json"], ids=["the same file", "the stage"])
def test_a_result_that_no_longer_holds_is_set_aside_and_decided_again(
    repository: StateRepository, server: GitServer, tmp_path: Path, data: Path, path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    repository.head()
    server.stop()
    sha = add(repository, 1)
    assert sha is not None
    write_with_git(tmp_path / "clone", path, "theirs", "By hand")
    server.start()
    assert repository.head().read(path) == "theirs"
    assert subjects(server) == ["By hand"]
    assert "'Result 1' was decided on a branch that has moved on meanwhile: it is set aside" in caplog.text
    git("gc", "-q", "--prune=now", at=data / "state.git")
    assert git("show", f"{sha}:rounds/1/1.json", at=data / "state.git") == "1", "what was set aside is kept"
    again = add(repository, 1)
    assert (again is None) == (path == "rounds/1/1.json"), "decided on what is there now"
    assert repository.waiting() == []


def test_what_was_taken_from_the_branch_does_not_come_back_with_what_waits(
    repository: StateRepository, server: GitServer
) -> None:
    first = repository.head().commit
    repository.commit(Step(1, "advance", "1"), writes("state.json", "2", "Advance"))
    add(repository, 1)
    server.stop()
    add(repository, 2)
    git("update-ref", "refs/heads/main", first, at=server.folder / "competition.git")
    server.start()
    assert repository.head().commit == first, "it was decided on another stage: set aside"
    assert (subjects(server), repository.waiting()) == ([], [])


WORKER = """
import sys
from pathlib import Path
from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.state_repo import Change, StateRepository, Step

remote, mirror, token, name, count = sys.argv[1:]
with StateRepository(remote, Path(mirror), token=token) as state:
    for number in range(int(count)):
        path = f"rounds/1/{name}{number}.json"
        def decide(head):
            return None if head.exists(path) else Change({path: name}, f"{name} {number}")
        info = state.commit(Step(1, name, str(number)), decide)
        print(number, flush=True)
"""


def start(server: GitServer, mirror: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, f"{server.url}/competition.git", str(mirror), TOKEN, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_two_writers_race_over_http(server: GitServer, tmp_path: Path) -> None:
    writers = [start(server, tmp_path / name / "state.git", name, 5) for name in ("left", "right")]
    for writer in writers:
        writer.communicate(timeout=600)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(subjects(server)) == sorted(f"{name} {number}" for name in ("left", "right") for number in range(5))


def test_kills_during_an_outage_lose_nothing_that_was_told_and_keep_the_order(
    server: GitServer, data: Path, tmp_path: Path
) -> None:
    told: set[int] = set()
    with opened(server, data) as one:
        one.head()
    for turn in range(4):
        (server.start if turn % 2 else server.stop)()
        worker = start(server, data / "state.git", "w", 10)
        assert worker.stdout is not None
        with worker.stdout:
            for line in worker.stdout:
                told.add(int(line))
                if int(line) == 2 * turn + 2:
                    break
            time.sleep(0.05 * turn)
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
    with opened(server, data) as one:
        one.head()
        assert one.waiting() == []
    found = subjects(server)
    assert found == [f"w {number}" for number in range(len(found))]
    assert {f"w {number}" for number in told} <= set(found)
    assert len(told) >= 8


# A partial clone


def test_only_the_files_that_are_read_are_fetched_and_history_needs_no_network(
    repository: StateRepository, server: GitServer, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    for number in range(2, 12):
        for name in ("a", "b", "c/d", "c/e"):
            (clone / f"rounds/{number}/{name}.json").parent.mkdir(parents=True, exist_ok=True)
            (clone / f"rounds/{number}/{name}.json").write_text(os.urandom(20_000).hex())
        write_with_git(clone, "other.json", str(number), f"Round {number}")
    server.sent = 0
    head = repository.head()
    assert server.sent < 20_000, "the past comes without files"
    before = len(server.requests)
    assert [len(head.read(f"rounds/4/{name}.json") or "") for name in ("c/d", "a", "b", "c/e")] == [40_000] * 4
    assert 80_000 < server.sent < 120_000
    assert len(server.requests) - before <= 4, "a round is fetched at once"
    server.stop()
    assert [head.read("rounds/4/a.json") is not None, head.exists("rounds/9/c/d.json")] == [True, True]
    assert [info.subject for info in head.log(2)] == ["Round 11", "Round 10"]
    last = head.last_commit("rounds/5/c")
    assert last is not None
    assert (last.subject, len(last.files)) == ("Round 5", 2)
    assert repository.at(last.sha[:12]).exists("rounds/5/a.json")
    with pytest.raises(Unavailable, match="does not answer"):
        head.read("rounds/9/a.json")
    server.start()
    write_with_git(clone, "rounds/12/a.json", "new", "Round 12")
    head = repository.head()
    server.stop()
    assert head.read("rounds/12/a.json") == "new", "what is new comes with its files"


def test_a_commit_over_files_that_were_never_read_keeps_them(repository: StateRepository, server: GitServer) -> None:
    repository.commit(Step(1, "x", "1"), lambda _: Change({"rounds/0/5AB/new.json": "1"}, "New"))
    assert show(server, "rounds/0/5AB/b.json") == "rounds/0/5AB/b.json"
    assert git("fsck", "--strict", "--no-dangling", at=repository.mirror) == ""
    git("gc", "-q", "--prune=now", at=repository.mirror)
    assert repository.head().read("rounds/0/5AB/new.json") == "1"


# ssh


def test_ssh_runs_with_a_key_of_its_own_and_asks_nobody(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for ssh notes how it was called and runs the command that it was given, as the other end would."""
    stand_in = tmp_path / "bin" / "ssh"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nfor last; do :; done\nexec sh -c "$last"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("GIT_SSH_COMMAND", raising=False)
    remote = f"git@host.example:{server.folder}/competition.git"
    with StateRepository(remote, tmp_path / "data/state.git", token=TOKEN, ssh_key="/keys/my key") as one:
        assert one.head().read("state.json") == "state.json"
        assert add(one, 1) is not None
    calls = (tmp_path / "calls").read_text()
    assert subjects(server) == ["Result 1"]
    for word in ("BatchMode=yes", "StrictHostKeyChecking=accept-new", "ConnectTimeout=20", "-i /keys/my key"):
        assert word in calls
    assert TOKEN not in calls


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ("git@github.com: Permission denied (publickey).", OperatorError, "GEN404_GIT_SSH_KEY"),
        ("Host key verification failed.", OperatorError, "known_hosts"),
        ("ssh: Could not resolve hostname github.com: Temporary failure", Unavailable, "does not answer"),
        ("ssh: connect to host github.com port 22: Connection timed out", Unavailable, "does not answer"),
        ("ERROR: Repository not found.", OperatorError, "GEN404_STATE_REPO"),
    ],
)
def test_ssh_s_complaints_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, kind: type[Gen404Error], says: str
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"echo '{words}' >&2; exit 255; true")
    with (
        StateRepository("git@github.com:a/b.git", tmp_path / "state.git") as one,
        pytest.raises(kind, match=says),
    ):
        one.head()
