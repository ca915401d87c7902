"""Which judge the settings choose.

Belongs here: reading addresses, keys and the way of pictures, and refusing what cannot work. Does not: asking.
"""

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.embedder import Embedder
from gen404_dagster.resources.judge.embedded import EmbeddedJudge
from gen404_dagster.resources.judge.openai import OpenAIJudge
from gen404_dagster.resources.judge.protocol import Judge

if TYPE_CHECKING:
    from gen404_dagster.settings import Settings


def make_judge(settings: "Settings", embedder: Embedder) -> Judge:
    """The judge that the settings choose. Raises OperatorError naming what to set."""
    if settings.judge == "embedded":
        return EmbeddedJudge(embedder)
    urls = [url.rstrip("/") for url in _listed(settings.openai_base_url)] or [""]
    for url in urls:
        _check(url)
    if len(set(urls)) < len(urls):
        raise OperatorError("OPENAI_BASE_URL names an address twice")
    keys = _listed(settings.openai_api_key.get_secret_value()) or [""]
    if len(keys) not in (1, len(urls)):
        raise OperatorError(
            f"OPENAI_API_KEY holds {len(keys)} keys for {len(urls)} addresses: give one, or one for each"
        )
    if not all(key.isascii() and key.isprintable() for key in keys):  # a header cannot carry it, and its error shows it
        raise OperatorError("OPENAI_API_KEY holds a line break or another character that no key has")
    as_urls = settings.judge_images == "url"
    if settings.judge_images == "auto":
        as_urls = not _only_here(settings.cdn_url)
    return OpenAIJudge(
        urls,
        keys if len(keys) == len(urls) else keys * len(urls),
        settings.judge_model,
        as_urls=as_urls,
        concurrency=settings.limits.judge_concurrency,
        timeout_seconds=settings.judge_timeout_seconds,
        max_tokens=settings.judge_max_tokens,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check(url: str) -> None:
    try:
        address = urlsplit(url)
        whole = address.scheme in ("http", "https") and address.hostname and address.port != 0 and url.isprintable()
    except ValueError:  # brackets, port
        whole = False
    if not whole:
        raise OperatorError(
            "OPENAI_BASE_URL is not an http(s) address: GEN404_JUDGE=openai needs one ending in /v1, or several, "
            "separated by commas"
        )
    if address.username or address.password or address.query:
        raise OperatorError("OPENAI_BASE_URL holds credentials or a query: give the key as OPENAI_API_KEY")


def _only_here(url: str) -> bool:
    """Whether an address means something on this machine only."""
    host = (urlsplit(url).hostname or "localhost").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
