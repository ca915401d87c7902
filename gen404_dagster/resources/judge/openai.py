"""A vision-language model behind OpenAI-compatible servers (vLLM, llama-server).

Belongs here: one question over HTTP, what each failure means, and trying again. Does not: the words (`wording`),
reading the answer (`answers`), which server is asked (`endpoints`).
"""

import asyncio
import random
import re
import ssl
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from gen404_dagster.errors import JudgeUnavailable, OperatorError
from gen404_dagster.resources.judge.answers import (
    ANSWER_SCHEMA,
    REFUSED,
    NoAnswer,
    NotThisApi,
    Said,
    parse_answer,
    read_completion,
)
from gen404_dagster.resources.judge.endpoints import Endpoint, Endpoints, Lease
from gen404_dagster.resources.judge.protocol import JudgeAnswer, Picture, Question, Reply, one_line
from gen404_dagster.resources.judge.wording import PROMPT_VERSION, data_uri, messages

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_RAW_CHARS = 20_000
MOST_THROTTLED = 20
"""429s that one question takes without using up its tries, as long as the server answers others."""


class OpenAIJudge:
    """A vision-language model, on one server or several that serve the same.

    Pictures go as URLs where they have one, or always as data. Three tries on connection errors, timeouts, 429 and
    5xx, at another server at once if one is healthy, else after a wait; an answer that is none is asked for once more.
    Connections are kept from entering it to leaving it.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        api_keys: Sequence[str],
        model: str,
        *,
        as_urls: bool,
        concurrency: int = 16,
        timeout_seconds: float = 30.0,
        max_tokens: int = 1024,
        waits: Sequence[float] = (10.0, 30.0),
        longest_wait: float = 60.0,
    ) -> None:
        """api_keys: one for each address. waits: seconds before each further try, about.

        longest_wait: bound on a server's Retry-After, in seconds.
        """
        self._keys = {url.rstrip("/"): key for url, key in zip(base_urls, api_keys, strict=True)}
        self._model, self.reads_urls, self._concurrency = model, as_urls, concurrency
        self._timeout, self._max_tokens = timeout_seconds, max_tokens
        self._waits, self._longest_wait = tuple(waits), longest_wait
        self._open: AsyncExitStack | None = None

    @property
    def identity(self) -> str:
        return f"openai/{self._model}/prompt-{PROMPT_VERSION}/{self._max_tokens}-tokens"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def at_once(self) -> int:
        return self._concurrency * len(self._keys)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._clients = {url: await stack.enter_async_context(self._client(url)) for url in self._keys}
            self._endpoints = Endpoints(self.endpoints, self._concurrency, self._waits, self._longest_wait)
            stack.callback(self._endpoints.close)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._open is not None:
            stack, self._open = self._open, None
            await stack.aclose()

    async def ask(self, question: Question) -> Reply:
        if self._open is None:
            raise RuntimeError("the judge is asked outside of `async with`")
        asking = _Asking(question)
        said: list[Said] = []
        answer: JudgeAnswer | None = None
        fault = ""
        for _ in range(2):
            said.append(await self._complete(asking))
            fault = said[-1].fault
            try:
                if not fault:
                    answer = parse_answer(said[-1].text)
                    break
            except NoAnswer as error:
                fault = str(error)
        return Reply(
            answer=answer,
            fault="" if answer else f"{self._model}: {fault}",
            raw=tuple(one.text[:MAX_RAW_CHARS] for one in said),
            endpoint=asking.endpoint,
            prompt_tokens=sum(one.prompt_tokens for one in said),
            completion_tokens=sum(one.completion_tokens for one in said),
            seconds=round(asking.seconds, 3),
            calls=asking.calls,
        )

    # --- one request ---

    async def _complete(self, asking: "_Asking") -> Said:
        """What an endpoint says, after as many tries as there are waits, and one."""
        tried: set[Endpoint] = set()
        tries = throttled = 0
        waits = iter(self._waits)
        while True:
            lease = await self._endpoints.take(tried)
            asking.calls, tries = asking.calls + 1, tries + 1
            seen = lease.endpoint.answered
            try:
                if not asking.messages:  # made when there is a place: a question is some megabytes
                    asking.messages = await self._messages(asking.question)
                said = await self._once(lease.endpoint, asking)
                self._endpoints.answered(lease)
                return said
            except _Busy as error:
                self._endpoints.throttled(lease, None if error.after is None else min(error.after, self._longest_wait))
                problem: _TryAgain = error
            except _TryAgain as error:
                self._endpoints.failed(lease, str(error))
                problem = error
            finally:
                self._endpoints.give_back(lease)
            # Outside of `except`: tracebacks are stored, and what a server says may repeat the key.
            tried.add(lease.endpoint)
            if self._endpoints.other_than(tried):
                continue
            tried.clear()
            if isinstance(problem, _Busy) and await self._is_answering(lease, seen, throttled):
                throttled += 1
                continue
            wait = next(waits, None)
            if wait is None:
                raise JudgeUnavailable(f"judge {self._model} at {lease.endpoint.url}: {problem} ({tries} tries)")
            # Also after a Retry-After, which closes the endpoint: a short one must not use up all tries in a moment.
            await asyncio.sleep(wait * random.uniform(0.9, 1.2))

    async def _is_answering(self, lease: Lease, seen: int, throttled: int) -> bool:
        """Whether a busy endpoint answers other questions: then it has a load, and no fault."""
        if throttled >= MOST_THROTTLED or not self._waits:
            return False
        await asyncio.sleep(self._waits[0] * random.uniform(0.1, 0.3))
        return lease.endpoint.answered > seen

    async def _once(self, endpoint: Endpoint, asking: "_Asking") -> Said:
        import openai

        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):  # the whole answer, also when it trickles
                completion = await self._clients[endpoint.url].chat.completions.create(
                    model=self._model,
                    messages=asking.messages,
                    temperature=0.0,
                    seed=asking.question.seed,
                    max_tokens=self._max_tokens,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "penalties", "strict": True, "schema": ANSWER_SCHEMA},
                    },
                )
            said = read_completion(completion)
        except (TimeoutError, openai.APITimeoutError):
            raise _TryAgain(f"no answer within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _TryAgain(f"no connection: {self._said(error.__cause__ or error)}") from None
        except openai.APIStatusError as error:
            if error.status_code != 400 or str(error.code) not in _FILTERED:
                raise self._refused(error, endpoint) from None
            said = Said("", REFUSED, 0, 0)  # a miner's picture, not the operator's mistake
        except (openai.OpenAIError, ValueError, RecursionError, NotThisApi) as error:
            raise _TryAgain(f"not an answer of this API: {self._said(error)}") from None
        asking.seconds += time.monotonic() - began
        asking.endpoint = endpoint.url
        return said

    def _refused(self, error: Any, endpoint: Endpoint) -> Exception:
        """What an HTTP status means: try again, or the operator must change something."""
        status, said = error.status_code, self._said(error)
        after = _retry_after(error.response.headers)
        if status == 429 or (status == 503 and after is not None):
            return _Busy(f"HTTP {status}: {said}", after)
        if status in (408, 409, 425) or status >= 500:
            return _TryAgain(f"HTTP {status}: {said}")
        hint = {
            401: "check OPENAI_API_KEY",
            403: "check OPENAI_API_KEY",
            404: "check OPENAI_BASE_URL and GEN404_JUDGE_MODEL",
        }.get(status, "the question is refused: check GEN404_JUDGE_MODEL, that it takes pictures and JSON schemas")
        return OperatorError(f"judge {self._model} at {endpoint.url}: HTTP {status}, {hint} ({said})")

    def _said(self, error: object) -> str:
        """An error's text, short and without a key."""
        text = str(error) or type(error).__name__
        for key in filter(None, self._keys.values()):
            text = text.replace(key, "***")
        return str(one_line(re.sub(r"data:[\w/+.-]+;base64,\S+", "data:...", text)))[:300]

    def _client(self, url: str) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        return AsyncOpenAI(
            base_url=url,
            api_key=self._keys[url],
            max_retries=0,  # ours are bounded, and say so
            timeout=self._timeout,
            # Redirects are not followed: the key is for this address.
            http_client=DefaultAsyncHttpxClient(verify=_certificates(), timeout=self._timeout, follow_redirects=False),
        )

    # --- what is sent ---

    async def _messages(self, question: Question) -> list[Any]:
        pictures = (question.prompt, question.first, question.second)
        return messages(*[await self._address(picture) for picture in pictures])

    async def _address(self, picture: Picture) -> str:
        if self.reads_urls and picture.url:
            return picture.url
        return await asyncio.to_thread(data_uri, picture.data)


@cache
def _certificates() -> ssl.SSLContext:
    """Made once: reading all certificates takes longer than asking."""
    import httpx

    return httpx.create_ssl_context()


_FILTERED = {"content_filter", "content_policy_violation"}
"""Codes with which hosted judges refuse a question for what is in its pictures, before a model sees it."""


class _Asking:
    """A question on its way: what is sent, and what it took so far."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.messages: list[Any] = []
        self.calls, self.seconds, self.endpoint = 0, 0.0, ""


class _TryAgain(Exception):
    """A failure that may pass."""


class _Busy(_TryAgain):
    """`after`: seconds that the server asks for."""

    def __init__(self, fault: str, after: float | None) -> None:
        super().__init__(fault)
        self.after = after


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks for, given as seconds or as a date by the server's own clock."""
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
