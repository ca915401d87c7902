"""From a miner's 3D file to its preview PNG, by the backend that is configured, in a process of its own.

Belongs here: what the pipeline knows of a picture: its version, and who drew it. Does not: processes and their limits
(`resources.workers`), pixels (`gpu_kernels`).
"""

from dataclasses import dataclass
from functools import cache

from gen404_dagster.resources.workers import Drawn, Workers


@dataclass(frozen=True)
class Renderer:
    """Renders 2x2 previews. `version` identifies the picture's definition: other version, other pictures."""

    workers: Workers

    @property
    def version(self) -> str:
        from gpu_kernels import RENDERER_VERSION

        return RENDERER_VERSION

    @property
    def choice(self) -> str:
        """Who draws, and why: "version 3, cpu: chosen by auto ...". Empty until a worker is ready."""
        reasons: dict[str, list[str]] = {}
        for kind, reason in self.workers.chosen.items():
            reasons.setdefault(reason, []).append(kind)
        drawn = [
            reason if len(reasons) == 1 else f"{' and '.join(kinds)} by {reason}" for reason, kinds in reasons.items()
        ]
        return f"version {self.version}, {'; '.join(drawn)}" if drawn else ""

    def start(self) -> None:
        """Begin to load what draws, in the background, so that the first file does not wait."""
        self.workers.start()

    def preview(self, model: bytes) -> bytes:
        """PNG of the preview grid.

        Raises MinerFault with the reason when the file is refused, OperatorError when the configured backend cannot
        draw it here, Unavailable when nothing can be drawn now.
        """
        return self.draw(model).png

    def draw(self, model: bytes) -> Drawn:
        """As `preview`, with what it took."""
        return self.workers.render(model)


@cache
def shared_renderer(backend: str, count: int, memory_bytes: int, seconds: float) -> Renderer:
    """The process's renderer with these settings (as `Workers` takes them): its workers are kept from use to use."""
    return Renderer(Workers(backend, count, memory_bytes, seconds))
