"""Messages on their way to people: kept until each address has them.

Belongs here: one SQLite file under GEN404_DATA with what is waiting, what was sent, and up to which commit the state
repository has been told. Does not: what is news (`competition.news`), sending (`resources.notifier`).

A commit's messages and the mark that it is told are one transaction, and a message is taken from an address's queue as
soon as that address has it: a kill at any line repeats at most the one message that was on its way. The file survives
Dagster's directory. Losing it costs messages: the next look begins at the head.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gen404_dagster.competition.news import Kind, News
from gen404_dagster.errors import OperatorError, Unavailable

MOST_WAITING = 200
"""Messages that wait for one address at most; the oldest are given up, and their number is told."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""How long a sent message is remembered, so that it is not sent again."""
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 1800.0
BUSY_SECONDS = 20.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (repository TEXT PRIMARY KEY, head TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    made REAL NOT NULL,
    sent REAL,
    UNIQUE (target, id)
);
CREATE TABLE IF NOT EXISTS targets (
    target TEXT PRIMARY KEY,
    failures INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0,
    given_up INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True)
class Waiting:
    """A message in an address's queue."""

    number: int
    news: News


class Outbox:
    """The queues of several addresses, each known by a name that holds no secret. Safe between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def told(self, repository: str) -> str | None:
        """The last commit whose news are queued or sent; None before the first look."""
        with self._open() as db:
            row = db.execute("SELECT head FROM told WHERE repository = ?", (repository,)).fetchone()
        return row[0] if row else None

    def add(
        self, messages: Sequence[tuple[str, News]], targets: Sequence[str], told: tuple[str, str] | None = None
    ) -> None:
        """Queue (id, news) for every target, unless it had that id; `told`: repository and the commit they reach."""
        now = time.time()
        with self._open() as db:
            for target in targets:
                db.executemany(
                    "INSERT OR IGNORE INTO messages (target, id, kind, title, text, made) VALUES (?, ?, ?, ?, ?, ?)",
                    [(target, name, news.kind, news.title, news.text, now) for name, news in messages],
                )
                self._give_up_oldest(db, target)
            if told is not None:
                db.execute("INSERT OR REPLACE INTO told VALUES (?, ?)", told)
            db.execute("DELETE FROM messages WHERE sent < ?", (now - KEPT_SECONDS,))

    def waiting(self, target: str, most: int) -> tuple[list[Waiting], int]:
        """The oldest messages of a queue, and how many there are in all; none while a failed address is left alone."""
        with self._open() as db:
            row = db.execute("SELECT next_try FROM targets WHERE target = ?", (target,)).fetchone()
            if row and row[0] > time.time():
                return [], 0
            rows = db.execute(
                "SELECT number, kind, title, text FROM messages WHERE target = ? AND sent IS NULL ORDER BY number LIMIT ?",
                (target, most),
            ).fetchall()
            count = db.execute("SELECT count(*) FROM messages WHERE target = ? AND sent IS NULL", (target,)).fetchone()
        return [Waiting(number, News(Kind(kind), title, text)) for number, kind, title, text in rows], count[0]

    def given_up(self, target: str) -> int:
        """Messages that an address never got because too many waited, since it was last told so."""
        with self._open() as db:
            row = db.execute("SELECT given_up FROM targets WHERE target = ?", (target,)).fetchone()
        return int(row[0]) if row else 0

    def sent(self, target: str, messages: Sequence[Waiting]) -> None:
        with self._open() as db:
            now = time.time()
            db.executemany("UPDATE messages SET sent = ? WHERE number = ?", [(now, m.number) for m in messages])
            db.execute("INSERT OR REPLACE INTO targets (target) VALUES (?)", (target,))

    def failed(self, target: str) -> float:
        """Leave an address alone for a while that doubles with each failure; seconds until the next try."""
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO targets (target) VALUES (?)", (target,))
            (failures,) = db.execute("SELECT failures FROM targets WHERE target = ?", (target,)).fetchone()
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 20))
            db.execute(
                "UPDATE targets SET failures = failures + 1, next_try = ? WHERE target = ?",
                (time.time() + pause, target),
            )
        return pause

    def keep_only(self, targets: Sequence[str]) -> None:
        """Forget the queues of addresses that are configured no more."""
        marks = ", ".join("?" for _ in targets)
        with self._open() as db:
            for table in ("messages", "targets"):
                db.execute(f"DELETE FROM {table} WHERE target NOT IN ({marks})", list(targets))

    def _give_up_oldest(self, db: sqlite3.Connection, target: str) -> None:
        dropped = db.execute(
            "DELETE FROM messages WHERE target = ? AND sent IS NULL AND number NOT IN"
            " (SELECT number FROM messages WHERE target = ? AND sent IS NULL ORDER BY number DESC LIMIT ?)",
            (target, target, MOST_WAITING),
        ).rowcount
        if dropped:
            db.execute("INSERT OR IGNORE INTO targets (target) VALUES (?)", (target,))
            db.execute("UPDATE targets SET given_up = given_up + ? WHERE target = ?", (dropped, target))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises Unavailable or OperatorError naming the file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
            try:
                db.executescript(_SCHEMA)
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise OperatorError(f"{self.path} is damaged ({error}): delete it, it holds only messages") from error
        except OSError as error:
            raise Unavailable(f"{self.path}: {error.strerror or error}") from error
