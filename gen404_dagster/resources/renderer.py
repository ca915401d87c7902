"""From a miner's 3D file to its preview PNG, by the backend that is configured."""

from dataclasses import dataclass

from gen404_dagster.errors import MinerFault


@dataclass(frozen=True)
class Renderer:
    """Renders 2x2 previews. `version` identifies the picture's definition: other version, other pictures."""

    backend: str = "auto"

    @property
    def version(self) -> str:
        from gpu_kernels import RENDERER_VERSION

        return RENDERER_VERSION

    def preview(self, model: bytes) -> bytes:
        """PNG of the preview grid. Raises MinerFault with the reason when the file is refused."""
        from gpu_kernels import UnreadableModel, encode_png, render_preview

        try:
            return encode_png(render_preview(model, self.backend))
        except UnreadableModel as error:
            raise MinerFault(str(error)) from error

    def warm_up(self) -> None:
        """Compile or load the kernels, so that the first file does not wait."""
        from gpu_kernels import warm_up

        warm_up()
