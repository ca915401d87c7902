"""The journal: what survives kills, other processes and damage."""

import logging
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.journal import Journal
from tests.waiting import wait_for


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "data" / "journal.sqlite", "repo-a") as opened:
        yield opened


def test_a_value_is_found_by_round_unit_and_inputs(journal: Journal) -> None:
    value = {"url": "ü", "numbers": [1, 2.5, None, True], "nested": {"a": []}}
    journal.put(7, "download/5ABC/p1", "hash1", value)
    assert journal.get(7, "download/5ABC/p1", "hash1") == value
    assert journal.get(7, "download/5ABC/p1", "hash2") is None
    assert journal.get(8, "download/5ABC/p1", "hash1") is None
    assert journal.get(7, "download/5ABC/p2", "hash1") is None


def test_putting_again_replaces(journal: Journal) -> None:
    for value in (1, 1, 2):
        journal.put(1, "u", "i", value)
    assert journal.get(1, "u", "i") == 2
    assert journal.units(1) == {"u": 2}


def test_units_are_the_latest_by_unit_under_a_prefix(journal: Journal) -> None:
    journal.put(1, "a/1", "old", "first")
    journal.put(1, "a/2", "x", "other")
    journal.put(1, "a/1", "new", "second")
    journal.put(1, "b/1", "x", "elsewhere")
    journal.put(2, "a/1", "x", "another round")
    journal.put(1, "a%", "x", "no wildcard")
    assert journal.units(1, "a/") == {"a/1": "second", "a/2": "other"}
    journal.put(1, "a/1", "old", "first again")
    assert journal.units(1, "a/1") == {"a/1": "first again"}
    assert journal.units(1, "a%") == {"a%": "no wildcard"}


def test_forgetting_takes_a_prefix_of_one_round(journal: Journal) -> None:
    for number, unit in [(1, "a/1"), (1, "a/2"), (1, "b"), (2, "a/1")]:
        journal.put(number, unit, "i", unit)
    assert journal.forget(1, "a/") == 2
    assert (journal.units(1), journal.units(2)) == ({"b": "b"}, {"a/1": "a/1"})


def test_repositories_do_not_see_each_other(journal: Journal) -> None:
    with Journal(journal.path, "repo-b") as other:
        journal.put(1, "u", "i", "a")
        assert other.get(1, "u", "i") is None
        other.put(1, "u", "i", "b")
        assert journal.get(1, "u", "i") == "a"
        assert other.forget(1, "") == 1
        assert journal.units(1) == {"u": "a"}


def test_values_outlive_the_process_and_close(journal: Journal) -> None:
    journal.put(1, "u", "i", [1])
    journal.close()
    assert journal.get(1, "u", "i") == [1]
    with Journal(journal.path, "repo-a") as again:
        assert again.get(1, "u", "i") == [1]


def test_threads_and_journals_on_one_file(journal: Journal) -> None:
    with Journal(journal.path, "repo-a") as second, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (journal, second)[n % 2].put(1, f"u{n}", "i", n), range(100)))
        assert journal.units(1) == {f"u{n}": n for n in range(100)} == second.units(1)


WORKER = """
import sys
from pathlib import Path
from gen404_dagster.resources.journal import Journal

path, name = sys.argv[1:]
with Journal(Path(path), "repo") as journal:
    for number in range(10**6):
        journal.put(1, f"{name}/{number}", "i", {"number": number, "padding": "x" * 300})
        print(number, flush=True)
"""


def test_what_was_put_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    dice = random.Random(5)
    path = tmp_path / "journal.sqlite"
    said: dict[str, int] = {}
    for turn in range(3):
        running = {}
        for name in (f"{turn}a", f"{turn}b"):
            with (tmp_path / name).open("w") as out:
                running[name] = subprocess.Popen([sys.executable, "-c", WORKER, str(path), name], stdout=out)
        wait_for(lambda names=tuple(running): all((tmp_path / name).stat().st_size for name in names))  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.3))
        for worker in running.values():
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        for name in running:
            lines = (tmp_path / name).read_text().split("\n")[:-1]
            said[name] = int(lines[-1]) if lines else -1
    with Journal(path, "repo") as journal:
        for name, last in said.items():
            found = journal.units(1, f"{name}/")
            assert len(found) in (last + 1, last + 2)  # one more may be stored than was said
            assert all(found[f"{name}/{number}"]["number"] == number for number in range(last + 1))
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_file_that_is_no_database_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this was never a database" * 400)
    with caplog.at_level(logging.WARNING), Journal(path, "repo") as journal:
        journal.put(1, "u", "i", 1)
        assert journal.get(1, "u", "i") == 1
    (aside,) = tmp_path.glob("journal.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this was never")
    assert "was damaged" in caplog.text


def test_another_program_s_database_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE checkpoints (something TEXT)")
    connection.close()
    with Journal(path, "repo") as journal:
        journal.put(1, "u", "i", 1)
        assert journal.units(1) == {"u": 1}
    assert len(list(tmp_path.glob("journal.sqlite.damaged-*"))) == 1


def test_damage_never_becomes_a_wrong_value(tmp_path: Path) -> None:
    """Random bytes, truncations and flipped bits: a value is right or absent, never an error."""
    sound = tmp_path / "sound.sqlite"
    with Journal(sound, "repo") as journal:
        for number in range(60):
            journal.put(1, f"u{number}", "i", {"number": number, "text": "abc" * number})
    content = sound.read_bytes()
    dice = random.Random(11)
    for turn in range(40):
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 3, 40])):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        if turn % 4 == 0:
            del damaged[dice.randrange(len(damaged)) :]
        path = tmp_path / f"{turn}.sqlite"
        path.write_bytes(damaged)
        with Journal(path, "repo") as journal:
            for number in range(60):
                assert journal.get(1, f"u{number}", "i") in (None, {"number": number, "text": "abc" * number})
            assert all(value["number"] == int(unit[1:]) for unit, value in journal.units(1).items())
            journal.put(1, "new", "i", turn)
            assert journal.get(1, "new", "i") in (None, turn)  # SQLite does not notice every broken index


def test_a_place_that_cannot_be_written_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"journal .*file"):
        Journal(tmp_path / "file" / "journal.sqlite", "repo")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unavailable, match="unable to open"):
        Journal(tmp_path / "folder", "repo")
