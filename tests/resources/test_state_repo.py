"""The state repository against real git: remotes on disk, second writers, races of processes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gen404_dagster.errors import OperatorError, StateFileError, Unavailable
from gen404_dagster.resources.state_repo import Change, Snapshot, StateRepository, Step, trees
from gen404_dagster.resources.state_repo import git as running
from gen404_dagster.resources.state_repo import repository as door


def git(*arguments: str, at: Path) -> str:
    who = ["-c", "user.name=Reviewer", "-c", "user.email=reviewer@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=at, check=True, capture_output=True, text=True).stdout


def write_with_git(clone: Path, path: str, text: str, message: str) -> None:
    """What a person or another program does: pull, edit, commit, push."""
    git("pull", "-q", "--rebase", "origin", "main", at=clone)
    (clone / path).parent.mkdir(parents=True, exist_ok=True)
    (clone / path).write_text(text)
    git("add", "-A", at=clone)
    git("commit", "-qm", message, at=clone)
    git("push", "-q", "origin", "HEAD:main", at=clone)


def writes(path: str, text: str, subject: str) -> Callable[[Snapshot], Change]:
    return lambda _: Change({path: text}, subject)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository whose branch main holds one commit: state.json, a script, a link, a folder."""
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"), at=tmp_path)
    git("clone", "-q", str(tmp_path / "remote.git"), str(tmp_path / "clone"), at=tmp_path)
    clone = tmp_path / "clone"
    (clone / "run.sh").write_text("#!/bin/sh\n")
    (clone / "run.sh").chmod(0o755)
    (clone / "link").symlink_to("state.json")
    (clone / "rounds/0/5ABC").mkdir(parents=True)
    (clone / "rounds/0/5ABC/submitted.json").write_text("{}")
    (clone / "rounds/0/5ABC.json").write_text("[]")
    (clone / "state.json").write_text('{"current_round": 0}')
    git("add", "-A", at=clone)
    git("commit", "-qm", "Start the competition", at=clone)
    git("push", "-q", "origin", "HEAD:main", at=clone)
    return tmp_path / "remote.git"


@pytest.fixture
def repository(remote: Path, tmp_path: Path) -> Iterator[StateRepository]:
    with StateRepository(str(remote), tmp_path / "data" / "mirror.git") as opened:
        yield opened


def log_of(remote: Path) -> list[str]:
    return git("log", "--format=%s", "main", at=remote).split("\n")[:-1]


def test_a_snapshot_reads_files_folders_and_what_is_not_there(repository: StateRepository) -> None:
    head = repository.head()
    assert head.read("state.json") == '{"current_round": 0}'
    assert head.names("rounds/0") == ["5ABC", "5ABC.json"]
    assert head.names("") == ["link", "rounds", "run.sh", "state.json"]
    assert head.exists("rounds/0")
    assert not head.exists("rounds/1/seed.json")
    assert head.read("rounds/1/seed.json") is None
    assert head.read("rounds/0") is None
    assert head.read("state.json/below") is None
    assert head.names("state.json") == []
    with pytest.raises(StateFileError, match="link"):
        head.read("link")


def test_a_commit_changes_its_files_and_nothing_else(repository: StateRepository, remote: Path) -> None:
    change = Change({"rounds/1/seed.json": '{"seed": 7}', "rounds/0/5ABC/submitted.json": None}, "Open round 1", "Why.")
    commit = repository.commit(Step(1, "open_round", "abc123"), lambda _: change, run_id="run-1")
    assert commit is not None
    message = git("log", "-1", "--format=%an <%ae>%n%B", "main", at=remote)
    assert message == (
        "gen404-dagster <gen404@localhost>\nOpen round 1\n\nWhy.\n\n"
        "Gen404-Step: 1/open_round/abc123\nGen404-Run: run-1\n\n"
    )
    changed = git("show", "--name-status", "--no-renames", "--format=", "main", at=remote)
    assert changed == "D\trounds/0/5ABC/submitted.json\nA\trounds/1/seed.json\n"
    assert "100755 blob" in git("ls-tree", "main", "run.sh", at=remote)
    assert "120000 blob" in git("ls-tree", "main", "link", at=remote)
    assert git("ls-tree", "--name-only", "main:rounds", at=remote) == "0\n1\n"
    assert git("ls-tree", "--name-only", "main:rounds/0", at=remote) == "5ABC.json\n"
    assert git("fsck", "--strict", "--no-dangling", at=remote) == ""
    trailers = git("log", "-1", "--format=%(trailers:key=Gen404-Step,valueonly)", "main", at=remote)
    assert trailers.strip() == commit.step == "1/open_round/abc123"


def test_a_commit_reports_itself(repository: StateRepository) -> None:
    commit = repository.commit(Step(1, "judge", "f00", "5A/5B"), lambda _: Change({"ü/ß.json": "é"}, "Judge 5A, 5B"))
    assert commit is not None
    assert (commit.subject, commit.author, commit.step) == ("Judge 5A, 5B", "gen404-dagster", "1/judge/5A/5B/f00")
    assert commit.files == ("ü/ß.json",)
    assert abs(datetime.now(UTC) - commit.time) < timedelta(minutes=1)
    assert repository.head().commit == commit.sha
    assert repository.head().read("ü/ß.json") == "é"


def test_text_comes_back_to_the_byte(repository: StateRepository) -> None:
    texts = {"a": "no newline", "b": "\r\n mixed \n\r", "c": "", "d": "\N{OWL}" * 5000}
    repository.commit(Step(1, "x", "1"), lambda _: Change(texts, "Texts"))
    head = repository.head()
    assert {path: head.read(path) for path in texts} == texts


def test_a_step_that_was_taken_back_is_done_again_under_a_name_of_its_own(
    repository: StateRepository, remote: Path
) -> None:
    step = Step(1, "open_round", "abc")
    repository.commit(step, lambda _: Change({"state.json": "1"}, "Open"))
    assert repository.commit(step, lambda _: Change({"state.json": "1"}, "Open")) is None
    repository.commit(Step(1, "ops", "1"), lambda _: Change({"state.json": "0"}, "Take back"))
    again = repository.commit(step, lambda _: Change({"state.json": "1"}, "Open again"))
    assert again is not None
    assert again.step == "1/open_round/abc.2"
    assert log_of(remote) == ["Open again", "Take back", "Open", "Start the competition"]


def test_a_step_whose_name_begins_like_another_is_another(repository: StateRepository, remote: Path) -> None:
    for number, inputs in enumerate(["abc", "ab", "abcd"]):
        repository.commit(Step(1, "x", inputs), writes("state.json", str(number), f"Commit {number}"))
    assert len(log_of(remote)) == 4


def test_a_trailer_quoted_in_a_body_is_no_trailer(repository: StateRepository, remote: Path) -> None:
    quoting = Change({"state.json": "1"}, "Mention it", "Before:\n\nGen404-Step: 1/advance/abc")
    repository.commit(Step(1, "ops", "1"), lambda _: quoting)
    assert repository.commit(Step(1, "advance", "abc"), lambda _: Change({"state.json": "2"}, "Advance")) is not None
    assert log_of(remote)[0] == "Advance"


def test_no_change_is_no_commit(repository: StateRepository, remote: Path) -> None:
    same = Change({"state.json": '{"current_round": 0}', "absent.json": None, "rounds/9/absent.json": None}, "Nothing")
    assert repository.commit(Step(1, "x", "1"), lambda _: same) is None
    assert repository.commit(Step(1, "x", "1"), lambda _: None) is None
    assert repository.commit(Step(1, "x", "1"), lambda _: Change({}, "Nothing")) is None
    assert log_of(remote) == ["Start the competition"]


def test_a_lost_race_is_decided_again_and_the_winner_s_file_is_kept(
    repository: StateRepository, remote: Path, tmp_path: Path
) -> None:
    seen: list[str | None] = []

    def decide(head: Snapshot) -> Change:
        seen.append(head.read("rounds/0/source_audit.json"))
        if len(seen) == 1:  # a reviewer pushes between our look and our push
            write_with_git(tmp_path / "clone", "rounds/0/source_audit.json", "[]", "Review sources")
        return Change({"state.json": "2"}, "Advance")

    assert repository.commit(Step(0, "advance", "1"), decide) is not None
    assert seen == [None, "[]"]
    assert log_of(remote) == ["Advance", "Review sources", "Start the competition"]
    assert repository.head().read("rounds/0/source_audit.json") == "[]"


def test_endless_races_end_in_unavailable(
    repository: StateRepository, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PUSH_ATTEMPTS", 3)
    rounds = iter(range(100))

    def decide(_: Snapshot) -> Change:
        write_with_git(tmp_path / "clone", "other.json", str(next(rounds)), "Other")
        return Change({"state.json": "2"}, "Advance")

    with pytest.raises(Unavailable, match="lost 3 races"):
        repository.commit(Step(0, "advance", "1"), decide)
    assert log_of(remote) == ["Other", "Other", "Other", "Start the competition"]


WRITER = """
import sys
from pathlib import Path
from gen404_dagster.resources.state_repo import Change, StateRepository, Step

remote, mirror, name, count = sys.argv[1:]
with StateRepository(remote, Path(mirror), author=f"{name} <{name}@example.org>") as repository:
    for number in range(int(count)):
        def decide(head):
            lines = head.read("shared.txt") or ""
            return Change({"shared.txt": f"{lines}{name} {number}\\n", f"{name}/{number}.json": "{}"}, f"{name} {number}")
        assert repository.commit(Step(1, name, str(number)), decide) is not None
    # a step that both want: one of them gets it
    repository.commit(
        Step(1, "both", "1"), lambda head: None if head.exists("both.txt") else Change({"both.txt": name}, "Both")
    )
"""


@pytest.mark.parametrize("mirrors", [("a.git", "b.git"), ("one.git", "one.git")], ids=["two mirrors", "one mirror"])
def test_racing_writers_lose_nothing_and_double_nothing(remote: Path, tmp_path: Path, mirrors: tuple[str, str]) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(remote), str(tmp_path / mirror), name, "12"])
        for name, mirror in zip(("left", "right"), mirrors, strict=True)
    ]
    for number in range(4):
        for _ in range(20):
            try:
                write_with_git(tmp_path / "clone", "person.txt", str(number), f"person {number}")
                break
            except subprocess.CalledProcessError:
                git("fetch", "-q", "origin", "main", at=tmp_path / "clone")
                git("reset", "-q", "--hard", "origin/main", at=tmp_path / "clone")
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    subjects = log_of(remote)
    expected = [f"{name} {n}" for name in ("left", "right") for n in range(12)] + [f"person {n}" for n in range(4)]
    assert sorted(subjects) == sorted([*expected, "Both", "Start the competition"])
    lines = git("show", "main:shared.txt", at=remote).splitlines()
    assert sorted(lines) == sorted(expected[:24])
    assert lines == [subject for subject in reversed(subjects) if subject in set(lines)]
    assert git("fsck", "--strict", "--no-dangling", at=remote) == ""


def test_threads_share_a_repository(repository: StateRepository, remote: Path) -> None:
    def work(number: int) -> bool:
        for turn in range(3):
            path = f"thread/{number}-{turn}.txt"
            repository.commit(Step(1, "t", f"{number}.{turn}"), writes(path, path, path))
            assert repository.head().read(path) == path
            assert repository.head(fetch=False).read("state.json") == '{"current_round": 0}'
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(log_of(remote)) == 13
    assert len(repository.head().names("thread")) == 12


def test_another_process_s_packed_objects_are_seen(repository: StateRepository, remote: Path, tmp_path: Path) -> None:
    repository.head().read("state.json")  # git's reading process runs from here on
    with StateRepository(str(remote), repository.mirror) as second:
        second.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "packed"}, "By another"))
    git("gc", "-q", "--prune=now", at=repository.mirror)
    assert repository.head().read("state.json") == "packed"


def test_a_killed_reading_process_is_started_again(repository: StateRepository) -> None:
    head = repository.head()
    head.read("run.sh")
    reading = repository._repo.git.cat_file_all
    assert reading is not None
    os.kill(reading.proc.pid, signal.SIGKILL)
    assert head.read("state.json") == '{"current_round": 0}'


def test_a_damaged_file_is_not_read_as_a_shorter_one(repository: StateRepository, remote: Path, tmp_path: Path) -> None:
    prompts = "".join(f"https://example.org/{os.urandom(8).hex()}.png\n" for _ in range(4000))
    repository.commit(Step(1, "x", "1"), writes("prompts.txt", prompts, "Add prompts"))
    sha = git("rev-parse", "main:prompts.txt", at=remote).strip()
    file = repository.mirror / "objects" / sha[:2] / sha[2:]
    whole = file.read_bytes()
    file.chmod(0o644)
    for damaged in (whole[: len(whole) // 2], whole[:-4] + b"1234", whole[:40_000] + b"!" + whole[40_001:], b""):
        file.write_bytes(damaged)
        with pytest.raises(OperatorError, match=r"prompts\.txt: object .* cannot be read; delete .*mirror\.git"):
            repository.head().read("prompts.txt")
        assert repository.head().read("state.json") == '{"current_round": 0}'
    file.write_bytes(whole)
    assert repository.head().read("prompts.txt") == prompts


@pytest.mark.parametrize("damage", ["HEAD", "objects", "refs", "config", "nonsense", "a file"])
def test_a_mirror_that_is_not_whole_is_named(
    repository: StateRepository, remote: Path, tmp_path: Path, damage: str
) -> None:
    repository.head()
    mirror = repository.mirror
    if damage == "nonsense":
        (mirror / "config").write_text("[core\n")
    elif damage == "a file":
        shutil.rmtree(mirror)
        mirror.write_text("")
    elif (mirror / damage).is_dir():
        shutil.rmtree(mirror / damage)
    else:
        (mirror / damage).unlink()
    before = sorted(mirror.parent.iterdir())
    with pytest.raises(OperatorError, match=r"mirror\.git cannot be used .* delete it, it is only a copy"):
        StateRepository(str(remote), mirror)
    assert sorted(mirror.parent.iterdir()) == before


def test_a_full_disk_is_an_outage(repository: StateRepository, remote: Path) -> None:
    said = "error: unable to write loose object file: No space left on device; fatal: unpack-objects failed"
    fault = running.Git(str(remote), repository.mirror).fault(said)
    assert isinstance(fault, Unavailable)
    assert str(fault).startswith(f"{repository.mirror} cannot be written: ")
    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from pathlib import Path; from gen404_dagster.errors import Unavailable;"
        "from gen404_dagster.resources.state_repo import Change, StateRepository, Step;"
        "state = StateRepository(sys.argv[1], Path(sys.argv[2]))\n"
        "try: state.commit(Step(1, 'x', '1'), lambda _: Change({'a': os.urandom(200_000).hex()}, 'A'))\n"
        "except Unavailable as error: print(error)"
    )
    command = [sys.executable, "-c", limited, str(remote), str(repository.mirror)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"{repository.mirror} cannot be written: File too large\n"
    assert log_of(remote) == ["Start the competition"]


def test_many_reads_are_fast(repository: StateRepository) -> None:
    files = {f"rounds/2/{number:03}/generated.json": f"{number}" * 200 for number in range(500)}
    repository.commit(Step(2, "x", "1"), lambda _: Change(files, "Many"))
    head = repository.head()
    start = time.monotonic()
    assert all(head.read(path) == text for path, text in files.items())
    assert time.monotonic() - start < 5, "500 reads take 0.1 s on an idle machine"


def test_history_is_told_newest_first_and_by_path(repository: StateRepository) -> None:
    for number in range(3):
        repository.commit(Step(1, "x", str(number)), writes(f"{number % 2}.txt", str(number), f"Commit {number}"))
    head = repository.head()
    assert [commit.subject for commit in head.log(3)] == ["Commit 2", "Commit 1", "Commit 0"]
    assert [commit.files for commit in head.log(2)] == [("0.txt",), ("1.txt",)]
    last = head.last_commit("1.txt")
    assert last is not None
    assert (last.subject, last.step) == ("Commit 1", "1/x/1")
    assert head.last_commit("never.txt") is None
    folder = head.last_commit("rounds/0")
    assert folder is not None
    assert (folder.subject, folder.author, folder.step) == ("Start the competition", "Reviewer", None)


def test_earlier_commits_can_be_read(repository: StateRepository, remote: Path) -> None:
    old = repository.head().commit
    repository.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "new"}, "New"))
    assert repository.at(old).read("state.json") == '{"current_round": 0}'
    assert repository.at(old[:8]).commit == old
    for wrong in ("0" * 40, "main", "--all", ""):
        with pytest.raises(OperatorError, match="commit"):
            repository.at(wrong)


def test_a_commit_pushed_by_someone_else_can_be_read_at_once(repository: StateRepository, tmp_path: Path) -> None:
    repository.head()
    write_with_git(tmp_path / "clone", "state.json", "theirs", "Theirs")
    sha = git("rev-parse", "HEAD", at=tmp_path / "clone").strip()
    assert repository.head(fetch=False).read("state.json") == '{"current_round": 0}'
    assert repository.at(sha).read("state.json") == "theirs"


def test_a_rewritten_branch_is_taken_as_it_is(repository: StateRepository, remote: Path, tmp_path: Path) -> None:
    first = repository.head().commit
    repository.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "gone"}, "Rolled back later"))
    git("update-ref", "refs/heads/main", first, at=remote)
    assert repository.head().read("state.json") == '{"current_round": 0}'
    assert repository.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "again"}, "Again")) is not None
    assert log_of(remote) == ["Again", "Start the competition"]


def test_what_is_no_repository_is_the_operator_s_matter(tmp_path: Path, remote: Path) -> None:
    (tmp_path / "folder").mkdir()
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "empty.git"), at=tmp_path)
    for address, says in [
        (str(tmp_path / "nowhere"), "is not a git repository: set GEN404_STATE_REPO"),
        (str(tmp_path / "folder"), "is not a git repository: set GEN404_STATE_REPO"),
        (str(tmp_path / "empty.git"), "has no branch main"),
    ]:
        with StateRepository(address, tmp_path / "m.git") as opened, pytest.raises(OperatorError, match=says):
            opened.head()
    with pytest.raises(OperatorError, match="GEN404_STATE_REPO"):
        StateRepository("", tmp_path / "m.git")
    with pytest.raises(OperatorError, match="GEN404_GIT_AUTHOR"):
        StateRepository(str(remote), tmp_path / "m.git", author="nobody")
    with pytest.raises(OperatorError, match="GEN404_STATE_BRANCH"):
        StateRepository(str(remote), tmp_path / "m.git", branch="a b")


def test_a_checked_out_branch_refuses_with_advice(tmp_path: Path, remote: Path) -> None:
    with StateRepository(str(tmp_path / "clone"), tmp_path / "m.git") as opened:
        head = opened.head()
        with pytest.raises(OperatorError, match="refuses commits to main"):
            opened.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "2"}, "Advance"))
        assert opened.head().commit == head.commit


def test_an_unreachable_remote_is_tried_again(tmp_path: Path) -> None:
    with (
        StateRepository("http://127.0.0.1:9/competition.git", tmp_path / "m.git") as opened,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        opened.head()


def test_links_to_commits_are_those_of_github(tmp_path: Path, remote: Path) -> None:
    sha = "0123456789" * 4
    for address, link in [
        ("https://github.com/owner/name.git", f"https://github.com/owner/name/commit/{sha}"),
        ("https://github.com/owner/name", f"https://github.com/owner/name/commit/{sha}"),
        ("https://git.example.org/owner/name", None),
        (str(remote), None),
    ]:
        with StateRepository(address, tmp_path / "m.git") as opened:
            assert opened.commit_link(sha) == link


@pytest.mark.parametrize("path", ["", "/etc/x", "a//b", "../x", "a/./b", "a/.git/config", ".GIT/x", "a/", "a\nb"])
def test_paths_that_leave_the_tree_are_refused(repository: StateRepository, path: str) -> None:
    with pytest.raises(StateFileError, match="no path"):
        repository.commit(Step(1, "x", "1"), lambda _: Change({path: "x"}, "Bad"))


def test_files_and_folders_do_not_replace_each_other(repository: StateRepository, remote: Path) -> None:
    for path in ("state.json/below", "rounds/0", "link"):
        with pytest.raises(StateFileError, match="is a f"):
            repository.commit(Step(1, "x", "1"), writes(path, "x", "Bad"))
    assert log_of(remote) == ["Start the competition"]


def test_files_that_are_no_text_or_too_large_are_refused(
    repository: StateRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clone" / "binary").write_bytes(b"ab\xff\xfe")
    write_with_git(tmp_path / "clone", "large.json", "x" * 5000, "Odd files")
    head = repository.head()
    with pytest.raises(StateFileError, match=r"binary: is not UTF-8 text \(byte 2\)"):
        head.read("binary")
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 4999)
    with pytest.raises(StateFileError, match=r"large.json: 5000 bytes"):
        head.read("large.json")
    assert head.read("state.json") == '{"current_round": 0}'
    with pytest.raises(StateFileError, match="not Unicode"):
        repository.commit(Step(1, "x", "1"), lambda _: Change({"a": "\ud800"}, "Bad"))


def test_messages_and_steps_cannot_smuggle_lines() -> None:
    for bad in [
        ("a b", "1", None),
        ("a", "1\n", None),
        ("a/b", "1", None),
        ("a", "1", "u//v"),
        ("a", "1", ""),
        ("", "1", None),
    ]:
        with pytest.raises(ValueError, match="words without blanks"):
            Step(1, bad[0], bad[1], bad[2])


def test_locks_that_a_killed_git_left_in_a_local_remote_are_removed(repository: StateRepository, remote: Path) -> None:
    locks = [remote / "HEAD.lock", remote / "refs/heads/main.lock"]
    for lock in locks:
        lock.touch()
        os.utime(lock, (time.time() - 60, time.time() - 60))
    assert repository.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "2"}, "Advance")) is not None
    assert not any(lock.exists() for lock in locks)


def test_git_s_environment_of_the_caller_is_not_used(
    repository: StateRepository, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inside a git hook, where these name another repository; and a user's configuration that signs commits."""
    git("init", "-q", str(tmp_path / "other"), at=tmp_path)
    before = sorted(path.name for path in (tmp_path / "other/.git").iterdir())
    (tmp_path / "gitconfig").write_text(
        "[commit]\n gpgSign = true\n[gpg]\n program = /bin/false\n[push]\n gpgSign = true\n[log]\n showSignature = true\n"
        f"[core]\n hooksPath = {tmp_path / 'hooks'}\n"
    )
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/pre-push").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "hooks/pre-push").chmod(0o755)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other/.git/index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "other/.git/objects"))
    with StateRepository(str(remote), tmp_path / "fresh.git") as fresh:
        assert fresh.commit(Step(1, "x", "1"), lambda _: Change({"state.json": "2"}, "Advance")) is not None
        assert fresh.head().read("state.json") == "2"
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.delenv(name)
    assert sorted(path.name for path in (tmp_path / "other/.git").iterdir()) == before
    assert log_of(remote)[0] == "Advance"


def test_a_waiting_lock_is_named(repository: StateRepository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(door, "LOCK_SECONDS", 0.1)
    entered, leave = threading.Event(), threading.Event()

    def decide(_: Snapshot) -> None:
        entered.set()
        leave.wait(10)

    with (
        StateRepository(repository.remote, repository.mirror) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        holding = pool.submit(other.commit, Step(1, "x", "1"), decide)
        entered.wait(10)
        with pytest.raises(Unavailable, match=r"has held .*mirror.git.lock"):
            repository.commit(Step(1, "x", "2"), lambda _: None)
        leave.set()
        holding.result()
