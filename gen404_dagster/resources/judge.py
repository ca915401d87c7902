"""Who says which of two models matches the prompt picture less, and how badly.

Belongs here: asking one question, in an embedded form (embeddings and pixels) and as an OpenAI-compatible server is
asked (vLLM, llama-server), and the two questions of a duel. Does not: what the penalties mean for a duel
(`competition.duels`), which duels are due (assets), keeping answers (`resources.journal`).

Two ways to fail, never mixed up: `JudgeUnavailable`, the match stays open; `JudgeNonsense`, the judge did answer and
the caller records a draw that says so.
"""

import asyncio
import base64
import hashlib
import ipaddress
import json
import random
import re
import ssl
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gen404_dagster.errors import Gen404Error, JudgeUnavailable, OperatorError
from gen404_dagster.resources.embedder import Embedder, Vectors
from gen404_dagster.resources.pictures import RGB, Array, UnreadablePicture, cut_out, decode, lab, resized, views

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from gen404_dagster.settings import Settings

WORST = 10
MAX_ISSUES_CHARS = 1000
MAX_ANSWER_CHARS = 100_000


class JudgeNonsense(Gen404Error):
    """The judge answered twice, and neither answer is one. The caller records a draw with this text."""


def _one_line(text: object) -> object:
    """Printable, on one line, bounded."""
    if not isinstance(text, str):
        return text
    shown = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_ISSUES_CHARS])
    return " ".join(shown.split())[:MAX_ISSUES_CHARS]


Penalty = Annotated[int, Field(strict=True, ge=0, le=WORST)]


class JudgeAnswer(BaseModel):
    """Penalties of the first and the second model, 0 (as the prompt shows) to 10 (nothing of it), and why."""

    model_config = ConfigDict(frozen=True)

    penalty_1: Penalty
    penalty_2: Penalty
    issues: Annotated[str, BeforeValidator(_one_line)]


@dataclass(frozen=True)
class Picture:
    """A prompt picture or a preview. `url`: where a judge elsewhere can read the same bytes."""

    data: bytes
    url: str | None
    sha256: str

    @classmethod
    def of(cls, data: bytes, url: str | None = None) -> "Picture":
        return cls(data, url, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Question:
    """Which of two previews, `first` or `second`, matches `prompt` less? `seed` is the round's."""

    prompt: Picture
    first: Picture
    second: Picture
    seed: int


class Judge(Protocol):
    reads_urls: bool
    """Whether it may be told where pictures lie. Else it gets bytes alone, which do not say whose they are."""

    @property
    def identity(self) -> str:
        """Who answers: model, prompt version, endpoint. Another identity may answer differently."""

    async def ask(self, question: Question) -> JudgeAnswer:
        """One answer. Raises JudgeUnavailable, JudgeNonsense, or OperatorError when the request itself is refused."""


@dataclass(frozen=True)
class DuelJudgement:
    """Penalties averaged over both orders. `answers`: left shown first, then right shown first."""

    left_penalty: float
    right_penalty: float
    issues: str
    answers: tuple[JudgeAnswer, JudgeAnswer]


async def judge_duel(judge: Judge, prompt: Picture, left: Picture, right: Picture, seed: int) -> DuelJudgement:
    """Two questions with sides swapped, so that a preference for a position cancels out.

    `issues` are those of the question in which "first" is left.
    """
    straight, swapped = await _both(
        judge.ask(Question(prompt, left, right, seed)), judge.ask(Question(prompt, right, left, seed))
    )
    return DuelJudgement(
        left_penalty=(straight.penalty_1 + swapped.penalty_2) / 2,
        right_penalty=(straight.penalty_2 + swapped.penalty_1) / 2,
        issues=straight.issues,
        answers=(straight, swapped),
    )


async def _both(
    first: Coroutine[Any, Any, JudgeAnswer], second: Coroutine[Any, Any, JudgeAnswer]
) -> tuple[JudgeAnswer, JudgeAnswer]:
    """Both answers; when one question fails the other is not waited for."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- embedded ---

CROP_SIDE = 224  # pixels of a cropped view, as the network takes it
PIXEL_SIDE = 32  # pixels of a view for colours and outlines: coarse, so that a shift by a pixel costs nothing

# Weights of one view's differences, and of how little the views look like the prompt on average (its back, its sides).
LOOK, COLOUR, OUTLINE, ALL_ROUND = 1.0, 0.6, 0.3, 0.4
PER_DIFFERENCE = 20.0  # penalty points per unit of difference between the two: 0.075 is the least that decides
PER_DISTANCE = 8.0  # penalty points per unit of the better one's distance: other objects are at 1.2 and more
REMEMBERED = 1024  # pictures, of about 85 KB


@dataclass(frozen=True)
class Look:
    """What is compared of a picture. V views that show something: 4 of a preview, 1 of a prompt, 0 of nothing."""

    vectors: Vectors  # [V, D] unit
    colours: Array  # [V, S, S, 3] L*a*b*
    masks: Array  # [V, S, S] 0..1


@dataclass(frozen=True)
class Difference:
    """How a candidate's best view differs from the prompt, each from 0, and `distance`, which adds them up."""

    distance: float
    look: float
    colour: float
    outline: float


class EmbeddedJudge:
    """A perceptual judge that is always the same: embeddings, colours and outlines of the best-matching view.

    Every view is cropped to its object. Differences of quality that nobody sees give equal penalties or penalties one
    apart: a draw. docs/calibration.md has its win and draw rates.
    """

    VERSION = "1"
    reads_urls = False

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._lock = Lock()
        # One picture is looked at by one thread only; others wait and find it done.
        self._working = [Lock() for _ in range(64)]

    @property
    def identity(self) -> str:
        return f"embedded-{self.VERSION}/{self._embedder.revision}"

    async def ask(self, question: Question) -> JudgeAnswer:
        return await asyncio.to_thread(self._answer, question)

    def _answer(self, question: Question) -> JudgeAnswer:
        prompt = self._look("the prompt picture", question.prompt)
        first = self.difference(prompt, self._look("the first preview", question.first))
        second = self.difference(prompt, self._look("the second preview", question.second))
        penalties = _penalties(first, second)
        return JudgeAnswer(
            penalty_1=penalties[0],
            penalty_2=penalties[1],
            issues=f"First: {_in_words(first)}. Second: {_in_words(second)}.",
        )

    def measure(self, prompt: bytes, preview: bytes) -> Difference | None:
        """How a preview differs from a prompt picture; None when it shows nothing."""
        return self.difference(
            self._look("the prompt picture", Picture.of(prompt)), self._look("the preview", Picture.of(preview))
        )

    @staticmethod
    def difference(prompt: Look, candidate: Look) -> Difference | None:
        """The best view's differences; None when no view shows anything."""
        if not len(candidate.vectors):
            return None
        if not len(prompt.vectors):
            return Difference(distance=2.0, look=1.0, colour=1.0, outline=1.0)
        look = 1.0 - candidate.vectors.astype(np.float64) @ prompt.vectors[0].astype(np.float64)
        either = np.maximum(candidate.masks, prompt.masks[0]).astype(np.float64)
        both = np.minimum(candidate.masks, prompt.masks[0]).astype(np.float64)
        area = np.maximum(either.sum(axis=(1, 2)), 1.0)
        apart = np.minimum(np.linalg.norm(candidate.colours - prompt.colours[0], axis=3), 100.0) / 100.0
        colour = (apart * either).sum(axis=(1, 2)) / area
        outline = 1.0 - both.sum(axis=(1, 2)) / area
        views_apart = LOOK * look + COLOUR * colour + OUTLINE * outline
        best = int(views_apart.argmin())
        return Difference(
            distance=float(views_apart[best] + ALL_ROUND * look.mean()),
            look=float(look[best]),
            colour=float(colour[best]),
            outline=float(outline[best]),
        )

    def _look(self, role: str, picture: Picture) -> Look:
        with self._working[int(picture.sha256[:4], 16) % len(self._working)]:
            with self._lock:
                known = self._looks.get(picture.sha256)
                if known is not None:
                    self._looks.move_to_end(picture.sha256)
                    return known
            try:
                seen = self._seen(decode(picture.data))
            except UnreadablePicture as error:
                raise UnreadablePicture(f"{role}: {error}") from error
            with self._lock:
                self._looks[picture.sha256] = seen
                while len(self._looks) > REMEMBERED:
                    self._looks.popitem(last=False)
            return seen

    def _seen(self, picture: RGB) -> Look:
        cuts = [cut for cut in (cut_out(view, CROP_SIDE) for view in views(picture)) if not cut.empty]
        small = [resized(cut.picture, PIXEL_SIDE, PIXEL_SIDE) for cut in cuts]
        step = CROP_SIDE // PIXEL_SIDE
        masks = [cut.mask.reshape(PIXEL_SIDE, step, PIXEL_SIDE, step).mean(axis=(1, 3)) for cut in cuts]
        return Look(
            vectors=self._embedder.embed_pictures([cut.picture for cut in cuts]),
            colours=np.array([lab(view) for view in small], np.float32),
            masks=np.array(masks, np.float32),
        )


def _penalties(first: Difference | None, second: Difference | None) -> tuple[int, int]:
    """Penalties of two candidates; None shows nothing.

    The gap follows the difference of both, wherever on the scale they are: rounding each alone would let equal
    differences decide here and not there.
    """
    if first is None or second is None:
        return tuple(WORST if each is None else min(_base(each), WORST - 2) for each in (first, second))  # type: ignore[return-value]
    gap = min(WORST, round(PER_DIFFERENCE * abs(first.distance - second.distance)))
    better = min(_base(min(first, second, key=lambda each: each.distance)), WORST - gap)
    return (better, better + gap) if first.distance <= second.distance else (better + gap, better)


def _base(difference: Difference) -> int:
    return min(WORST, round(PER_DISTANCE * difference.distance))


def _in_words(difference: Difference | None) -> str:
    if difference is None:
        return "nothing is visible"
    parts = {
        "details": (difference.look, 0.12, 0.3),
        "colours": (difference.colour, 0.1, 0.25),
        "shape": (difference.outline, 0.12, 0.3),
    }
    said = {
        name: "match" if value < small else "differ slightly" if value < large else "differ"
        for name, (value, small, large) in parts.items()
    }
    if len(set(said.values())) == 1:
        return f"details, colours and shape {said['details']}"
    return ", ".join(f"{name} {_singular(verb) if name == 'shape' else verb}" for name, verb in said.items())


def _singular(verb: str) -> str:
    word, _, rest = verb.partition(" ")
    return " ".join(filter(None, ["matches" if word == "match" else "differs", rest]))


# --- OpenAI-compatible ---

PROMPT_VERSION = "1"

SYSTEM = """\
You compare 3D models with the picture they were made from. You are exact and impartial. You answer with one JSON object
and nothing else."""

INSTRUCTION = """\
Each model is shown as a grid of four views of the same object, from four sides on white; the black lines only part the
views. Judge how well each model rebuilds the object of the prompt picture. A side that the picture does not show may
look like anything that fits the object. Ignore background, lighting, size and viewpoint.

Give each model a penalty from 0 to 10:
0: the same object in shape, parts, colours and texture.
1 to 3: small deviations of proportions, details or colours.
4 to 6: clear faults: missing or additional parts, wrong colours, blurred texture, wrong style.
7 to 9: hard to recognise as the object, broken or unfinished.
10: a different object, or nothing.
Models that are about equally good get equal penalties. The order in which they are shown means nothing.

Answer as {"penalty_1": first model's, "penalty_2": second model's, "issues": the main faults of both in one or two
short sentences}."""

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "penalty_1": {"type": "integer", "minimum": 0, "maximum": WORST},
        "penalty_2": {"type": "integer", "minimum": 0, "maximum": WORST},
        "issues": {"type": "string"},
    },
    "required": ["penalty_1", "penalty_2", "issues"],
    "additionalProperties": False,
}


class OpenAIJudge:
    """A vision-language model behind an OpenAI-compatible server.

    Pictures go as URLs where they have one, or always as data. Three tries on connection errors, timeouts, 429 and
    5xx; an answer that is none is asked for once more. May be used from several event loops: a question has its own
    connection.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        model: str,
        *,
        as_urls: bool,
        timeout_seconds: float = 30.0,
        max_tokens: int = 1024,
        waits: Sequence[float] = (10.0, 30.0),
        longest_wait: float = 60.0,
    ) -> None:
        """waits: seconds before each further try, about. longest_wait: bound on a server's Retry-After, in seconds."""
        self._base_url, self._key, self._model = base_url.rstrip("/"), api_key, model
        self.reads_urls, self._timeout, self._max_tokens = as_urls, timeout_seconds, max_tokens
        self._waits, self._longest_wait = tuple(waits), longest_wait

    @property
    def identity(self) -> str:
        return f"openai/{self._model}/prompt-{PROMPT_VERSION}/{self._base_url}"

    async def ask(self, question: Question) -> JudgeAnswer:
        messages = await self._messages(question)
        fault = ""
        async with self._client() as client:
            for _ in range(2):
                try:
                    return parse_answer(await self._complete(client, messages, question.seed))
                except _NoAnswer as error:
                    fault = str(error)
        raise JudgeNonsense(f"{self._model}: {fault}")

    # --- one request ---

    async def _complete(self, client: "AsyncOpenAI", messages: list[Any], seed: int) -> str:
        """Text of an answer, after as many tries as there are waits, and one."""
        fault = ""
        for wait in (*self._waits, None):
            try:
                return await self._once(client, messages, seed)
            except _TryAgain as error:
                fault = str(error)
                if wait is not None:
                    pause = wait * random.uniform(0.9, 1.1) if error.after is None else error.after
                    await asyncio.sleep(min(pause, self._longest_wait))
        tries = len(self._waits) + 1
        # Outside of `except`: tracebacks are stored, and what a server says may repeat the key.
        raise JudgeUnavailable(f"judge {self._model} at {self._base_url}: {fault} ({tries} tries)")

    async def _once(self, client: "AsyncOpenAI", messages: list[Any], seed: int) -> str:
        import openai

        try:
            async with asyncio.timeout(self._timeout):  # the whole answer, also when it trickles
                completion = await client.chat.completions.create(
                    model=self._model,
                    messages=messages,
                    temperature=0.0,
                    seed=seed,
                    max_tokens=self._max_tokens,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "penalties", "strict": True, "schema": ANSWER_SCHEMA},
                    },
                )
        except (TimeoutError, openai.APITimeoutError):
            raise _TryAgain(f"no answer within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _TryAgain(f"no connection: {self._said(error.__cause__ or error)}") from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except (openai.OpenAIError, ValueError) as error:
            raise _TryAgain(f"not an answer of this API: {self._said(error)}") from None
        return _text_of(completion)

    def _refused(self, error: Any) -> Exception:
        """What an HTTP status means: try again, or the operator must change something."""
        status, said = error.status_code, self._said(error)
        if status in (408, 409, 425, 429) or status >= 500:
            return _TryAgain(f"HTTP {status}: {said}", _retry_after(error.response.headers))
        hint = {
            401: "check OPENAI_API_KEY",
            403: "check OPENAI_API_KEY",
            404: "check OPENAI_BASE_URL and GEN404_JUDGE_MODEL",
        }.get(status, "the server refuses the question: check that the model takes pictures and JSON schemas")
        return OperatorError(f"judge {self._model} at {self._base_url}: HTTP {status}, {hint} ({said})")

    def _said(self, error: object) -> str:
        """An error's text, short and without the key."""
        text = str(error) or type(error).__name__
        text = text.replace(self._key, "***") if self._key else text
        return str(_one_line(re.sub(r"data:[\w/+.-]+;base64,\S+", "data:...", text)))[:300]

    def _client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        return AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._key,
            max_retries=0,  # ours are bounded, and say so
            timeout=self._timeout,
            # Redirects are not followed: the key is for this address.
            http_client=DefaultAsyncHttpxClient(verify=self._tls, timeout=self._timeout, follow_redirects=False),
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made once: reading all certificates takes longer than asking."""
        import httpx

        return httpx.create_ssl_context()

    # --- what is sent ---

    async def _messages(self, question: Question) -> list[Any]:
        parts: list[dict[str, Any]] = []
        for label, picture in (
            ("Prompt picture:", question.prompt),
            ("First model:", question.first),
            ("Second model:", question.second),
        ):
            parts.append({"type": "text", "text": label})
            parts.append({"type": "image_url", "image_url": {"url": await self._address(picture)}})
        parts.append({"type": "text", "text": INSTRUCTION})
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]

    async def _address(self, picture: Picture) -> str:
        if self.reads_urls and picture.url:
            return picture.url
        return await asyncio.to_thread(data_uri, picture.data)


def data_uri(data: bytes) -> str:
    """A picture inside a URL; what is neither PNG nor JPEG becomes PNG, because not every server takes WebP."""
    if data.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    else:
        kind = "png"
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            from gpu_kernels import encode_png

            data = encode_png(decode(data))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class _TryAgain(Exception):
    """`after`: seconds that the server asks for."""

    def __init__(self, fault: str, after: float | None = None) -> None:
        super().__init__(fault)
        self.after = after


class _NoAnswer(Exception):
    """The model said something, and it is not an answer."""


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks for, given as seconds or as a date by the server's own clock."""
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _text_of(completion: Any) -> str:
    """What the model said. The client does not check what it is sent: nothing here is taken for granted."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise _TryAgain("not an answer of this API: no choices in it")
    reason = getattr(choice, "finish_reason", None)
    if getattr(message, "refusal", None) or reason == "content_filter":
        raise _NoAnswer("it refused to answer")
    if reason == "length":
        raise _NoAnswer("its answer was cut off at the limit of tokens (GEN404_JUDGE_MAX_TOKENS)")
    content = getattr(message, "content", None)
    if not isinstance(content, str) or not content.strip():
        raise _NoAnswer("its answer is empty")
    return content


def parse_answer(text: str) -> JudgeAnswer:
    """The answer in a model's text: after its thoughts, without fences and other wrapping. Raises _NoAnswer."""
    if len(text) > MAX_ANSWER_CHARS:
        raise _NoAnswer(f"its answer has {len(text)} characters")
    said = text.rpartition("</think>")[2]
    if "<think>" in said:
        raise _NoAnswer("its thoughts have no end")
    start, end = said.find("{"), said.rfind("}")
    if start < 0 or end < start:
        raise _NoAnswer(f"its answer holds no JSON object: {str(_one_line(said))[:120]!r}")
    try:
        return JudgeAnswer.model_validate(json.loads(said[start : end + 1]))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise _NoAnswer(f"its answer is out of bounds: {where}: {fault['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _NoAnswer(f"its answer is not JSON: {str(_one_line(said))[:120]!r}") from error


# --- choice ---


def make_judge(settings: "Settings", embedder: Embedder) -> Judge:
    """The judge that the settings choose. Raises OperatorError naming what to set."""
    if settings.judge == "embedded":
        return EmbeddedJudge(embedder)
    address = urlsplit(settings.openai_base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise OperatorError("OPENAI_BASE_URL is not an http(s) address: GEN404_JUDGE=openai needs one, ending in /v1")
    if address.username or address.password or address.query:
        raise OperatorError("OPENAI_BASE_URL holds credentials or a query: give the key as OPENAI_API_KEY")
    as_urls = settings.judge_images == "url"
    if settings.judge_images == "auto":
        as_urls = not _only_here(settings.cdn_url)
    return OpenAIJudge(
        settings.openai_base_url,
        settings.openai_api_key.get_secret_value(),
        settings.judge_model,
        as_urls=as_urls,
        timeout_seconds=settings.judge_timeout_seconds,
        max_tokens=settings.judge_max_tokens,
    )


def _only_here(url: str) -> bool:
    """Whether an address means something on this machine only."""
    host = (urlsplit(url).hostname or "localhost").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
