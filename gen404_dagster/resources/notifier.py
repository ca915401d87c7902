"""Sending a message to people: Discord, Slack, e-mail and whatever else apprise knows, each by one URL.

Belongs here: reading the addresses, one message to one address within a time, why it was not taken. Does not: what is
said (`competition.news`), what still has to be sent (`resources.outbox`).

An address is a secret as a whole: it is never shown or logged, neither here nor by apprise and the HTTP client below it.
https://appriseit.com
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gen404_dagster.competition.news import Kind, News
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.outbox import Outbox

SEND_SECONDS = 15.0
"""Longest one message may take, in seconds; apprise's own limits are per packet."""
MOST_TEXT_CHARS = 1800
"""Discord takes 2000 characters with the title."""
MOST_AT_ONCE = 3
"""Messages to one address in one delivery; if more wait, they go together in one digest."""
MOST_IN_DIGEST = 20

_THREAD = "gen404-notify"
_STATUS = re.compile(r"error[=: ]+(\d{3})\b")
_LOGGERS = ("apprise", "urllib3.connectionpool", "urllib3.util.retry")


@dataclass(frozen=True)
class Target:
    """One address. `name` tells it from others without saying what it is; `service` is what it leads to."""

    name: str
    service: str
    position: int
    url: str = field(repr=False)

    def __str__(self) -> str:
        return f"address {self.position} ({self.service})"


class Notifier:
    """The configured addresses. Raises OperatorError for one that nothing is known of, by its position alone."""

    def __init__(self, addresses: str) -> None:
        self.targets = tuple(
            _target(position, url) for position, url in enumerate(dict.fromkeys(split_addresses(addresses)), 1)
        )

    def send(self, target: Target, title: str, text: str) -> None:
        """Deliver one message. Raises Unavailable: it did not arrive, or nobody knows whether it did."""
        if any(thread.name == f"{_THREAD}-{target.name}" for thread in threading.enumerate()):
            raise Unavailable(f"{target} is still busy with the last message")
        outcome = _Outcome()
        # A receiver that sends a byte now and then keeps its thread, which is left behind, but not the round.
        thread = threading.Thread(
            target=outcome.of,
            args=(target, title, text[:MOST_TEXT_CHARS]),
            name=f"{_THREAD}-{target.name}",
            daemon=True,
        )
        thread.start()
        thread.join(SEND_SECONDS)
        if thread.is_alive():
            raise Unavailable(f"{target} did not take the message within {SEND_SECONDS:g} s")
        if not outcome.taken:
            raise Unavailable(f"{target} {outcome.why()}")


def split_addresses(addresses: str) -> list[str]:
    """URLs separated by spaces, line ends or commas; a comma within a URL stays (`?to=a,b`)."""
    return [part for part in re.split(r"\s+|,+(?=[A-Za-z][\w+.-]*://)|,+$", addresses.replace(", ", " ")) if part]


def deliver(notifier: Notifier, outbox: Outbox) -> list[str]:
    """Send what waits, to all addresses at once: one that fails keeps its queue and holds up no other.

    Begins no message after SEND_SECONDS, so that it ends within twice that: the other sensors wait for this one. Returns
    one line per address that had something waiting.
    """
    if not notifier.targets:
        return []
    with ThreadPoolExecutor(len(notifier.targets)) as pool:
        lines = pool.map(lambda target: _deliver_to(target, notifier, outbox), notifier.targets)
        return [line for line in lines if line]


def _deliver_to(target: Target, notifier: Notifier, outbox: Outbox) -> str:
    waiting, count = outbox.waiting(target.name, MOST_IN_DIGEST)
    if not waiting:
        return ""
    given_up = outbox.given_up(target.name)
    together = len(waiting) > MOST_AT_ONCE or given_up > 0
    began, sent = time.monotonic(), 0
    try:
        for part in [waiting] if together else [[one] for one in waiting]:
            if time.monotonic() - began > SEND_SECONDS:
                break
            news = [message.news for message in part]
            if together:
                fitting = _fitting(news)
                part, news = part[:fitting], news[:fitting]
                title, text = _digest(news, count - fitting, given_up)
            else:
                title, text = news[0].title, news[0].text
            notifier.send(target, title, text)
            outbox.sent(target.name, part)
            sent += len(part)
        return f"{target}: {sent} sent, {count - sent} waiting"
    except Unavailable as error:
        pause = outbox.failed(target.name)
        return f"{error}; {count - sent} waiting, next try in {pause:.0f} s"


def _line(news: News) -> str:
    return f"- {news.title}. {' '.join(news.text.split())}".strip()


def _fitting(news: Sequence[News]) -> int:
    """How many messages one digest holds; at least one."""
    room, count = MOST_TEXT_CHARS - 200, 0
    for one in news:
        room -= len(_line(one)) + 1
        if room < 0 and count:
            break
        count += 1
    return count


def _digest(news: Sequence[News], more: int, given_up: int) -> tuple[str, str]:
    lines = [_line(one) for one in news]
    if more > 0:
        lines.append(f"{more} more follow.")
    if given_up:
        lines.append(f"{given_up} older messages were given up while this address did not answer.")
    failures = sum(one.kind is Kind.FAILURE for one in news)
    return f"{len(news)} messages" + (f", {failures} of them failures" if failures else ""), "\n".join(lines)


def _target(position: int, url: str) -> Target:
    try:
        from apprise import Apprise
    except ImportError as error:
        raise OperatorError(
            f"GEN404_NOTIFY needs {error.name}: install it with `pip install 'gen404-dagster[validator]'`"
        ) from error
    with _muffled(_Outcome()):
        plugin: Any = Apprise.instantiate(url, suppress_exceptions=True)
    if plugin is None:
        raise OperatorError(
            f"GEN404_NOTIFY: address {position} is not one that apprise knows (https://appriseit.com/services/)"
        )
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Target(name, str(plugin.service_name), position, url)


class _Outcome:
    """What became of a message in its thread."""

    def __init__(self) -> None:
        self.taken = False
        self._said: list[str] = []

    def of(self, target: Target, title: str, text: str) -> None:
        from apprise import Apprise, AppriseAsset, NotifyFormat

        # In this very thread, whose log is taken and whose end nobody waits for: no pool, no timeout of apprise's. A
        # redirected POST becomes a GET, whose answer says nothing of the message: followed only with `?redirect=yes`.
        asset = AppriseAsset(app_id="gen404", async_mode=False, service_timeout=0, http_redirects=False)
        service = Apprise(asset=asset)
        with _muffled(self):
            try:
                plugin: Any = Apprise.instantiate(target.url, asset=asset)
                # apprise's 4 s would give up, and send again, what a slow receiver has taken.
                plugin.socket_read_timeout = max(plugin.socket_read_timeout, SEND_SECONDS)
                service.add(plugin)
                self.taken = bool(service.notify(text, title, body_format=NotifyFormat.TEXT))
            except Exception as error:  # a plugin's own fault: the message waits
                self.hear(type(error).__name__)

    def hear(self, message: str) -> None:
        self._said.append(message)

    def why(self) -> str:
        """Only a status: apprise's own words may name the address."""
        statuses = [found[1] for said in self._said if (found := _STATUS.search(said))]
        return f"answered with status {statuses[-1]}" if statuses else "could not be reached, or refused the message"


class _Muffle(logging.Filter):
    """Takes what a thread that holds an address logs: at level DEBUG that names the address."""

    def filter(self, record: logging.LogRecord) -> bool:
        outcome: _Outcome | None = getattr(_here, "outcome", None)
        if outcome is None:
            return True
        outcome.hear(record.getMessage())
        return False


_here, _muffle = threading.local(), _Muffle()


@contextmanager
def _muffled(outcome: _Outcome) -> Iterator[None]:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_muffle)  # a second time it changes nothing
    _here.outcome = outcome
    try:
        yield
    finally:
        _here.outcome = None
