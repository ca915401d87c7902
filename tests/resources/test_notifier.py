"""Messages through the real apprise to a receiver on loopback that is down, slow, or refuses."""

import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.competition.news import Kind, News
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources import notifier as module
from gen404_dagster.resources import outbox as outbox_module
from gen404_dagster.resources.notifier import MOST_TEXT_CHARS, Notifier, deliver, split_addresses
from gen404_dagster.resources.outbox import MOST_WAITING, Outbox
from tests.resources.webhook_receiver import Receiver, receiver
from tests.waiting import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "notifications.sqlite")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed address is tried again at once."""
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.0)


def notifier_of(hook: Receiver) -> Notifier:
    return Notifier(f"json://{hook.address}/secret-path")


def queue(outbox: Outbox, notifier: Notifier, *titles: str) -> None:
    news = [(title, News(Kind.STAGE, title, f"text of {title}")) for title in titles]
    outbox.add(news, [target.name for target in notifier.targets])


def test_addresses_are_told_apart_by_blanks_and_commas_but_not_by_a_comma_within_one() -> None:
    text = "discord://1234/token, mailtos://u:p@x.org?to=a@b.c,d@e.f\njson://127.0.0.1,xml://127.0.0.1 ,"
    assert split_addresses(text) == [
        "discord://1234/token",
        "mailtos://u:p@x.org?to=a@b.c,d@e.f",
        "json://127.0.0.1",
        "xml://127.0.0.1",
    ]


def test_an_unknown_address_is_refused_by_its_position_without_showing_it() -> None:
    with pytest.raises(OperatorError, match="address 2 ") as refused:
        Notifier("json://127.0.0.1/hook  foo://hunter2")
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(Notifier("json://127.0.0.1/hunter2").targets)


def test_a_message_arrives_once_with_title_and_text(hook: Receiver, outbox: Outbox) -> None:
    notifier = notifier_of(hook)
    queue(outbox, notifier, "Round 3: duels")
    assert deliver(notifier, outbox) == ["address 1 (JSON): 1 sent, 0 waiting"]
    assert deliver(notifier, outbox) == []
    queue(outbox, notifier, "Round 3: duels")  # told a second time, by another process
    assert deliver(notifier, outbox) == []
    assert [(body["title"], body["message"]) for body in hook.got] == [("Round 3: duels", "text of Round 3: duels")]


@pytest.mark.parametrize("status", [500, 503, 429, 404, 302, 307])
@pytest.mark.usefixtures("impatient")
def test_a_receiver_that_refuses_gets_the_message_later_and_once(hook: Receiver, outbox: Outbox, status: int) -> None:
    notifier = notifier_of(hook)
    queue(outbox, notifier, "first", "second")
    hook.status = status
    (line,) = deliver(notifier, outbox)
    assert f"answered with status {status}" in line
    assert "2 waiting" in line
    assert hook.asked == 1, "after a refusal the rest of the queue waits too"
    hook.status = 200
    deliver(notifier, outbox)
    assert hook.titles == ["first", "second"]


def test_a_receiver_that_is_down_is_left_alone_for_a_growing_pause(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        notifier = Notifier(f"json://127.0.0.1:{closed.getsockname()[1]}/")
    queue(outbox, notifier, "lost?")
    now = 1_000_000.0
    monkeypatch.setattr(outbox_module.time, "time", lambda: now)
    pauses = []
    for _ in range(9):
        (line,) = deliver(notifier, outbox)
        assert "could not be reached" in line
        assert deliver(notifier, outbox) == [], "it is tried again before its pause is over"
        pause = float(line.rpartition("next try in ")[2].removesuffix(" s"))
        pauses.append(pause)
        now += pause
    assert pauses == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]


@pytest.mark.usefixtures("impatient")
def test_a_receiver_that_never_ends_its_answer_costs_a_bounded_time(
    hook: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.3)
    notifier = notifier_of(hook)
    queue(outbox, notifier, "slow")
    hook.drip = True
    assert "did not take the message within 0.3 s" in deliver(notifier, outbox)[0]
    assert "still busy" in deliver(notifier, outbox)[0], "threads may not pile up"
    wait_for(lambda: hook.asked > 0)
    assert hook.asked == 1


@pytest.mark.usefixtures("impatient")
def test_an_address_that_is_down_holds_up_no_other_and_gets_its_messages_alone(outbox: Outbox) -> None:
    with receiver() as well, receiver() as down:
        both = Notifier(f"json://{well.address} json://{down.address}")
        down.status = 500
        queue(outbox, both, "one")
        deliver(both, outbox)
        queue(outbox, both, "two")
        deliver(both, outbox)
        down.status = 200
        deliver(both, outbox)
        assert (well.titles, down.titles) == (["one", "two"], ["one", "two"])


def test_a_receiver_that_takes_its_time_gets_the_message_once(
    hook: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise import URLBase

    monkeypatch.setattr(URLBase, "socket_read_timeout", 0.05)  # apprise's own is 4 s
    notifier = notifier_of(hook)
    queue(outbox, notifier, "slow")
    hook.delay = 0.3
    assert deliver(notifier, outbox) == ["address 1 (JSON): 1 sent, 0 waiting"]
    assert hook.titles == ["slow"]


def test_addresses_are_sent_to_at_once(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier("json://127.0.0.1/a json://127.0.0.1/b json://127.0.0.1/c")
    queue(outbox, notifier, "news")
    all_of_them = threading.Barrier(3, timeout=10)
    monkeypatch.setattr(Notifier, "send", lambda *_: all_of_them.wait())
    assert deliver(notifier, outbox) == [f"address {number} (JSON): 1 sent, 0 waiting" for number in (1, 2, 3)]


def test_a_slow_address_does_not_keep_the_other_sensors_waiting_for_its_whole_queue(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier("json://127.0.0.1/a")
    queue(outbox, notifier, "one", "two", "three")
    monkeypatch.setattr(module, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(Notifier, "send", lambda *_: time.sleep(0.2))
    for left in (2, 1, 0):
        assert deliver(notifier, outbox) == [f"address 1 (JSON): 1 sent, {left} waiting"]


def test_many_messages_go_together_and_each_is_told_once(hook: Receiver, outbox: Outbox) -> None:
    notifier = notifier_of(hook)
    titles = [f"Round {number:02d}: {'x' * 100}" for number in range(45)]
    queue(outbox, notifier, *titles)
    for _ in range(10):
        deliver(notifier, outbox)
    text = "\n".join(body["message"] for body in hook.got)
    assert all(text.count(f"text of {title}") == 1 for title in titles)
    assert len(hook.got) < 15
    assert max(len(body["message"]) for body in hook.got) <= MOST_TEXT_CHARS
    assert "more follow" in hook.got[0]["message"]


def test_the_oldest_messages_are_given_up_and_their_number_is_told(hook: Receiver, outbox: Outbox) -> None:
    notifier = notifier_of(hook)
    queue(outbox, notifier, *(f"news {number}" for number in range(MOST_WAITING + 30)))
    deliver(notifier, outbox)
    assert "30 older messages were given up" in hook.got[0]["message"]
    assert "news 30." in hook.got[0]["message"]
    deliver(notifier, outbox)
    assert "given up" not in hook.got[1]["message"]


def test_two_processes_that_restart_share_the_queue(hook: Receiver, outbox: Outbox) -> None:
    notifier = notifier_of(hook)
    queue(outbox, notifier, "a", "b")
    deliver(notifier_of(hook), Outbox(outbox.path))
    deliver(notifier, outbox)
    assert hook.titles == ["a", "b"]


def test_the_queue_of_an_address_that_is_configured_no_more_is_forgotten(hook: Receiver, outbox: Outbox) -> None:
    old, new = Notifier(f"json://{hook.address}/old"), Notifier(f"json://{hook.address}/new")
    queue(outbox, old, "stale")
    outbox.keep_only([target.name for target in new.targets])
    deliver(old, outbox)
    assert hook.got == []


def test_a_damaged_outbox_is_named(outbox: Outbox) -> None:
    outbox.path.write_bytes(b"no database" * 200)
    with pytest.raises(OperatorError, match="delete it"):
        outbox.told("x")


def test_an_outbox_that_another_process_holds_is_an_outage(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "BUSY_SECONDS", 0.05)
    assert outbox.told("x") is None
    holder = sqlite3.connect(outbox.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked"):
        outbox.told("x")
    holder.close()


def test_nothing_of_an_address_is_logged_at_any_level(
    hook: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3", "urllib3.connectionpool"):
        caplog.set_level(logging.DEBUG, logger=name)
    notifier = Notifier(f"json://user:hunter2@{hook.address}/hunter3?+X-Key=hunter4")
    queue(outbox, notifier, "quiet")
    hook.status = 500
    lines = deliver(notifier, outbox)
    hook.status = 200
    notifier.send(notifier.targets[0], "quiet", "again")
    assert hook.titles == ["quiet"]
    assert "hunter" not in caplog.text + " ".join(lines)
    assert hook.address not in caplog.text
    assert b"hunter" not in outbox.path.read_bytes()


def test_discord_and_slack_get_text_without_mark_up_of_ours(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.discord import NotifyDiscord
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://{hook.address}/api/webhooks")
    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{hook.address}/services")
    notifier = Notifier(
        "https://discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js "
        "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    )
    assert [target.service for target in notifier.targets] == ["Discord", "Slack"]
    for target in notifier.targets:
        notifier.send(target, "Round 3: 5Abc wins", "owner/my_model at 0123456789")
    discord, slack = hook.got
    assert "Round 3: 5Abc wins" in discord["content"]
    assert "owner/my_model at 0123456789" in discord["content"]
    assert "owner/my_model at 0123456789" in str(slack)
