"""An export target: a text file that lists the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from engine.export.target import Target, register_target
from engine.formats.grammar import Format


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    return "a listing has no word for floats" if fmt.name.startswith("fp8") else None


def _writer() -> object:
    from engine.export.folder import atomic_folder, check_destination  # when something is exported
    from engine.export.refusal import NotExportable
    from engine.export.writer import Exported, Request
    from engine.formats.grammar import parse_format

    class Listing:
        def check(self, request: Request) -> None:
            check_destination(request.out, request.checkpoint.folder, overwrite=request.overwrite)
            dtype = request.checkpoint.dtype
            reasons = {
                layer: _why_not(parse_format(format), (), dtype)
                for layer, format in request.recipe.items()
            }
            if refused := {layer: why for layer, why in reasons.items() if why is not None}:
                raise NotExportable(refused, "a listing")

        def write(self, request: Request) -> Exported:
            self.check(request)
            text = "".join(f"{layer} {format}\n" for layer, format in request.recipe.items())
            with atomic_folder(request.out) as folder:
                (folder / "layers.txt").write_text(text, encoding="utf-8")
                (folder / "config.json").write_text("{}", encoding="utf-8")
            request.on_progress(len(text), len(text), "")
            return Exported(request.out, len(text), tuple(request.recipe), ("only a listing",))

    return Listing()


TARGET = Target(
    name="listing",
    help="a text file, which people read",
    why_not_expressed=_why_not,
    writer=_writer,
)


def register() -> None:
    register_target(TARGET)
