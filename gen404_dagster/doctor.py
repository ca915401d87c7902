"""What is configured, what answers, what is missing: one look at each part, none of them changed."""

from collections.abc import Callable
from typing import NamedTuple

from gen404_dagster.errors import Gen404Error
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.settings import Settings


class Finding(NamedTuple):
    part: str
    good: bool
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """One finding per part, in the order in which a round needs them."""
    parts = build_resources(settings)

    def state() -> str:
        snapshot = parts["state"].get().head()  # type: ignore[attr-defined]
        return f"{settings.state_repo} at {snapshot.commit[:10]}"

    def chain() -> str:
        head = parts["chain"].get().head()  # type: ignore[attr-defined]
        return f"{settings.chain}, block {head.block}, {head.time:%Y-%m-%d %H:%M} UTC"

    def store() -> str:
        root = settings.data.absolute() / "store"
        root.mkdir(parents=True, exist_ok=True)
        return f"{settings.store} {root}, public at {settings.cdn_url or '(CDN_URL is not set)'}"

    def renderer() -> str:
        from gpu_kernels import backends

        return "; ".join(f"{b.name}: {'available' if b.available else 'not available'} ({b.why})" for b in backends())

    def embedder() -> str:
        network = parts["embedder"].get()  # type: ignore[attr-defined]
        return f"{network.name} {network.revision}"

    def judge() -> str:
        return str(parts["judge"].get(parts["embedder"].get()).identity)  # type: ignore[attr-defined]

    def pods() -> str:
        return ", ".join(provider.name for provider in parts["pods"].get())  # type: ignore[attr-defined]

    looks: dict[str, Callable[[], str]] = {
        "state repository": state,
        "chain": chain,
        "object store": store,
        "renderer": renderer,
        "embedder": embedder,
        "judge": judge,
        "pods": pods,
    }
    return [_look(part, look) for part, look in looks.items()]


def _look(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, look())
    except (Gen404Error, OSError, ImportError) as error:
        return Finding(part, False, " ".join(str(error).split()))
