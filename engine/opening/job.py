"""The job that opens a checkpoint."""

from __future__ import annotations

from engine import protocol as p
from engine.service.jobs import Context, OpenSpec, Steps
from engine.session import Session
from engine.workspace import Workspace


def _steps(context: Context[Workspace], command: p.Open) -> Steps:
    from engine.opening.stages import open_job

    return (yield from open_job(context.workspace, command.source, model=command.model))


def _then(session: Session, command: p.Open) -> list[p.Command]:
    """Find what an earlier run measured: of recipes it held, of formats tried; measure the last
    recipe, unless a change since then is being measured."""
    found: list[p.Command] = []
    if command.take_up and any(tried.measured for tried in session.tried):
        found.append(p.RecallScores())
    measuring = any(
        isinstance(job.command, p.MeasureRecipe) and job.status == "running"
        for job in session.jobs.values()
    )
    if command.take_up and session.changed and not measuring:
        found.append(p.MeasureRecipe())
    if session.fixes:
        found.append(p.AskFixes())
    return found


def differing(known: p.Settings, wanted: p.Settings) -> p.Notice | None:
    """A warning if a session's settings differ from those asked for; None if they are the same.

    Args:
        known: the settings the session was opened with.
        wanted: the settings another client asks for.
    """
    fields = [
        field
        for field in p.Settings.__struct_fields__
        if field != "fresh" and getattr(wanted, field) != getattr(known, field)
    ]
    if not fields and not wanted.fresh:
        return None
    return p.Notice(
        "warning",
        f"this session is running with profile {known.profile}: the settings asked for now "
        f"({', '.join(fields) or '--fresh'}) are ignored; quit it everywhere to apply them",
    )


def versions() -> dict[str, str]:
    """Versions that figures may depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("qtui", "torch", "transformers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


OPEN = OpenSpec(
    command=p.Open,
    kind="open",
    title=lambda command: f"open {command.source}",
    needs="nothing",
    lane="open",
    urgency=1,
    steps=_steps,
    workspace=lambda facts, settings, stop: Workspace(facts, settings, should_stop=stop),
    versions=versions,
    differing=differing,
    then=_then,
)
