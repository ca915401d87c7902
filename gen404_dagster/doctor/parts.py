"""Checks of the parts of a round: each does, once and small, what a round does with it.

Belongs here: one function a part. Does not: the parts themselves (`resources`), which of them are configured (`settings`).
"""

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np

from gen404_dagster.competition.commitments import Unreadable
from gen404_dagster.competition.duels import decide_by_penalties
from gen404_dagster.competition.models import DuelWinner
from gen404_dagster.doctor.examination import Finding, Remark
from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable
from gen404_dagster.resources.configured import (
    ChainResource,
    NotifierResource,
    ValidatorResource,
    build_resources,
    open_store,
)
from gen404_dagster.resources.embedder import Embedder, make_embedder
from gen404_dagster.resources.judge import DuelJudgement, Picture, judge_duel, make_judge
from gen404_dagster.resources.object_store import PNG, ObjectExists, ObjectStore
from gen404_dagster.resources.pods.protocol import what_answers
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.workers import in_words
from gen404_dagster.settings import Settings

PROVIDER_SECONDS = 90.0
OLDEST_BLOCK_SECONDS = 600.0
PROBES = "doctor"
"""Folder of probe objects; each is deleted by the check that wrote it."""

# What stands in for the other parts whose settings are refused when resources are built: each has its own check.
_NEUTRAL: dict[str, dict[str, object]] = {
    "store": {"store": "local"},
    "build_registry": {"builds": "simulated"},
    "pods": {"gpu_providers": "local"},
    "notifier": {"notify_events": ""},
}


def part(settings: Settings, name: str) -> Any:
    """One part as a run gets it, secrets included, whatever is wrong with the others."""
    others = {field: value for other, fields in _NEUTRAL.items() if other != name for field, value in fields.items()}
    resource = build_resources(settings.model_copy(update=others))[name]
    values = {field: getattr(resource, field) for field in type(resource).model_fields}
    # As Dagster does when a run starts, without an instance of Dagster.
    return type(resource)(**{f: v.get_value() if isinstance(v, dg.EnvVar) else v for f, v in values.items()})


def state_repository(settings: Settings) -> str:
    """Read the head and its round, push a probe branch and delete it."""
    repository = part(settings, "state").get()
    snapshot = repository.head()
    round_ = read_round(snapshot)
    where = f"round {round_.number}, {round_.state.stage}"
    if not snapshot.commit:
        raise Remark(f"{repository.display} is a plain folder, {where}: it can be read; rounds need a git repository")
    waiting = repository.waiting()
    if waiting:
        raise Unavailable(
            f"{len(waiting)} commits wait for {repository.display} since {waiting[0].time:%Y-%m-%d %H:%M} UTC"
        )
    repository.probe()
    return f"{repository.display} at {snapshot.commit[:10]}, {where}; a probe branch was pushed and deleted"


def chain(settings: Settings) -> str:
    """The finalized block and its age, everybody's commitments, the owner."""
    reader = part(settings, "chain").get()
    head = reader.head()
    words = f"{settings.chain}, block {head.block}, {head.time:%Y-%m-%d %H:%M} UTC"
    if settings.chain == "bittensor":
        age = (datetime.now(UTC) - head.time).total_seconds()
        words += f" ({age:.0f} s old)"
        if age > OLDEST_BLOCK_SECONDS:
            raise Unavailable(
                f"{words}: the node lags, or this machine's clock is ahead; name another SUBTENSOR_ENDPOINT"
            )
        if age < -60:
            raise OperatorError(f"{words}: a block of the future; this machine's clock is behind")
    revealed = reader.revealed().entries
    unreadable = sum(isinstance(text, Unreadable) for entries in revealed.values() for _, text in entries)
    subnet = reader.subnet(None)
    if subnet.owner is None or subnet.owner not in subnet.uids:
        raise OperatorError(f"{words}: netuid {settings.netuid} has no registered owner; is NETUID right?")
    return (
        f"{words}; netuid {settings.netuid}: {len(subnet.uids)} hotkeys, owner uid {subnet.uids[subnet.owner]}, "
        f"commitments of {len(revealed)} hotkeys ({unreadable} entries unreadable)"
    )


def weights(settings: Settings) -> str:
    """Whether weights can be set: the wallet's public address, its place in the subnet. Nothing is signed."""
    reader: ChainResource = part(settings, "chain")
    resource: ValidatorResource = part(settings, "validator")
    validator = resource.get(reader)
    if validator is None:
        if settings.set_weights:
            raise OperatorError("GEN404_SET_WEIGHTS is on, and GEN404_WALLET_NAME names no wallet")
        raise Remark("a dry run: weights are worked out and shown, not set (GEN404_SET_WEIGHTS, GEN404_WALLET_NAME)")
    hotkey = validator.hotkey
    if settings.chain == "bittensor":
        wallets = Path(settings.wallet_path or "~/.bittensor/wallets").expanduser()
        key = wallets / settings.wallet_name / "hotkeys" / settings.wallet_hotkey
        if not key.is_file():
            raise OperatorError(f"{key} is missing: weights are signed with it")
        if key.stat().st_mode & 0o077:
            raise OperatorError(f"other users may read {key}: `chmod 600 {key}`")
    uid = reader.get().subnet(hotkey).uids.get(hotkey)
    if uid is None:
        raise OperatorError(f"{hotkey} is not registered on netuid {settings.netuid}: weights would be refused")
    how = "sets weights" if settings.set_weights else "a dry run (GEN404_SET_WEIGHTS is off)"
    return f"{hotkey}, uid {uid}; {how}"


def object_store(settings: Settings) -> str:
    """Write, read, list, fetch by its public address and delete a probe object; a second write must be refused."""
    store, content = open_store(settings), b"probe of gen404 doctor"
    with _probes(store) as name:
        key = name("txt")
        store.put(key, content, "text/plain")
        if store.read(key) != content or key not in list(store.list(f"{PROBES}/")):
            raise OperatorError("the store does not give back what was written")
        try:
            store.put(key, content + b", replaced", "text/plain")
        except ObjectExists:
            pass
        else:
            raise OperatorError("the store let an object be replaced: it ignores If-None-Match, and cannot be used")
        if not settings.cdn_url:
            raise OperatorError(
                "written, read and deleted; CDN_URL is not set: the state files need its public address"
            )
        fetched = _fetch(store.url(key))
        if fetched != content:
            found = fetched if isinstance(fetched, str) else "gives other content"
            raise OperatorError(
                f"written and read, but {store.url(key)} {found}: CDN_URL must be the address at which the store is public"
            )
    if store.exists(key):
        raise OperatorError(f"{key} could not be deleted")
    return f"{settings.store}: a probe was written, read, fetched from {settings.cdn_url} and deleted"


@contextmanager
def _probes(store: ObjectStore) -> Iterator[Any]:
    """Gives keys; what is stored under them is deleted at the end, whatever happened."""
    keys: list[str] = []

    def key(suffix: str) -> str:
        keys.append(f"{PROBES}/{uuid.uuid4().hex}.{suffix}")
        return keys[-1]

    try:
        yield key
    finally:
        for used in keys:
            store.delete(used)


def _fetch(url: str) -> bytes | str:
    """The content, or what is wrong. A public address may take a moment to know a new object."""
    said = ""
    for attempt in range(3):
        time.sleep(attempt)
        try:
            answer = httpx.get(url, timeout=10.0, follow_redirects=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = f"does not answer ({type(error).__name__})"
            continue
        if answer.status_code == 200:
            return answer.content
        said = f"answers {answer.status_code}"
    return said


def renderer(settings: Settings) -> list[Finding]:
    """Draw the models of the self-test, in a worker within its limits; which backends there are."""
    from gpu_kernels import backends

    began, drawing = time.monotonic(), part(settings, "renderer").get()
    try:
        picture = drawing.workers.self_test()
        limits = settings.limits
        within = f"{limits.render_seconds:g} s and {in_words(limits.render_memory_bytes)} a file"
        good, words = True, f"{drawing.choice}; within {within}; self-test {picture}"
    except Gen404Error as error:
        good, words = False, str(error)
    drawn = Finding("renderer", good, " ".join(words.split()), seconds=time.monotonic() - began)
    return [drawn, *(Finding(f"renderer {b.name}", b.available, b.why, needed=False) for b in backends())]


def embedder(settings: Settings) -> str:
    network: Embedder = part(settings, "embedder").get()
    milliseconds = embedding_milliseconds(network)
    return (
        f"{network.model}; distances accepted up to {settings.limits.acceptable_distance:g}; on {network.device}, "
        f"{milliseconds:.0f} ms a picture; weights: {network.source}"
    )


def embedding_milliseconds(embedder: Embedder) -> float:
    """What a small picture takes, once the network is loaded."""
    picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    embedder.embed_pictures([picture])
    began = time.perf_counter()
    embedder.embed_pictures([picture])
    return 1000 * (time.perf_counter() - began)


def judge(settings: Settings) -> str:
    """A duel of two drawn pictures, one of which is nearly the prompt."""
    chosen = make_judge(settings, make_embedder(settings))
    drawn = [_drawing(*which) for which in ((0, True), (6, True), (0, False))]

    async def ask(prompt: Picture, left: Picture, right: Picture) -> DuelJudgement:
        async with chosen:
            return await judge_duel(chosen, prompt, left, right, seed=0)

    began = time.monotonic()
    if chosen.reads_urls:
        store = open_store(settings)
        with _probes(store) as name:
            keys = [name("png") for _ in drawn]
            for key, data in zip(keys, drawn, strict=True):
                store.put(key, data, PNG)
            try:
                judged = asyncio.run(ask(*[Picture.of(d, store.url(k)) for k, d in zip(keys, drawn, strict=True)]))
            except Gen404Error as error:  # a server's own words seldom say that it could not fetch them
                raise type(error)(f"{error}; it was to fetch the pictures from CDN_URL={settings.cdn_url}") from error
    else:
        judged = asyncio.run(ask(*[Picture.of(data) for data in drawn]))
    seconds = time.monotonic() - began
    who = " at ".join([chosen.identity, *([", ".join(chosen.endpoints)] if chosen.endpoints else [])])
    if judged.fault:
        raise OperatorError(f"{who} talks nonsense ({judged.fault}): is GEN404_JUDGE_MODEL a vision-language model?")
    penalties = f"penalties {judged.left_penalty:g} for nearly the prompt, {judged.right_penalty:g} for something else"
    words = f"{who}; a drawn duel in {seconds:.1f} s: {penalties}"
    if decide_by_penalties(judged.left_penalty, judged.right_penalty, settings.limits) is DuelWinner.RIGHT:
        raise Remark(f"{words}. It prefers the wrong picture: does it get them? See GEN404_JUDGE_IMAGES")
    return words


def _drawing(shift: int, disc: bool) -> bytes:
    """PNG of a red disc, or of a blue cross, on white."""
    import cv2

    picture = np.full((256, 256, 3), 255, np.uint8)
    if disc:
        cv2.circle(picture, (128 + shift, 128), 80, (40, 40, 220), -1, cv2.LINE_AA)
    else:
        cv2.line(picture, (40, 40), (216, 216), (200, 80, 20), 24, cv2.LINE_AA)
        cv2.line(picture, (216, 40), (40, 216), (200, 80, 20), 24, cv2.LINE_AA)
    return bytes(cv2.imencode(".png", picture)[1])


def builds(settings: Settings) -> str:
    """Look up the build run of round 0."""
    run = part(settings, "build_registry").get().run_of(0)
    return f"{settings.builds} answers; run of round 0 {'found' if run.found else 'not found'}"


def pods(settings: Settings) -> list[Finding]:
    """List this pipeline's pods at each provider, which also tries its credentials."""
    rented = part(settings, "pods")

    async def ask(provider: Any) -> Finding:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PROVIDER_SECONDS):
                good, words = True, await what_answers([provider], rented.instance)
        except TimeoutError:
            good, words = False, f"{provider.name} did not list its pods within {PROVIDER_SECONDS:g} s"
        except Gen404Error as error:
            good, words = False, str(error)
        return Finding(f"pods {provider.name}", good, " ".join(words.split()), seconds=time.monotonic() - began)

    async def ask_all() -> list[Finding]:
        return await asyncio.gather(*(ask(provider) for provider in rented.get()))

    return asyncio.run(ask_all())


def notifications(settings: Settings, notify: bool) -> str:
    """Which addresses are known; with `notify` each gets a test message."""
    if not settings.notify.get_secret_value():
        raise Remark("GEN404_NOTIFY is not set: nobody is told of stages, winners, verdicts and failures")
    resource: NotifierResource = part(settings, "notifier")
    notifier = resource.get()
    who = ", ".join(str(target) for target in notifier.targets)
    if not notify:
        return f"{who}; told of {', '.join(resource.events)}; --notify sends a test message"
    faults = []
    for target in notifier.targets:
        try:
            notifier.send(
                target, "gen404 doctor", f"A test message of the pipeline on {settings.state_repo or '(none)'}"
            )
        except Unavailable as error:
            faults.append(str(error))
    if faults:
        raise OperatorError(f"{'; '.join(faults)}: check GEN404_NOTIFY")
    return f"{who}; a test message was taken"
