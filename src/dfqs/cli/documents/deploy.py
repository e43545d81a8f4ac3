"""What `deploy` prints, beside its list."""

from typing import Literal

from pydantic import Field

from dfqs.records import Document, Record, Text
from dfqs.targets.contract import Command, Endpoint, LocalModel, Rendering, System, Target
from dfqs.targets.plan import WritePlan
from dfqs.targets.quoting import command_line
from dfqs.targets.verify import Verification


class DeployedFile(Record):
    """One file that a deployment writes."""

    path: Text
    kind: Literal["configuration", "file", "model"]
    action: Literal["made", "changed", "unchanged", "hard link", "symlink", "copy"]
    """Of the model's file, the way that is tried first (`dry_run`) or was gone."""
    bytes: int
    """Of the file as it is then; a link takes none more."""


class DeployCommand(Record):
    """A command, for a shell of this machine."""

    about: Text
    line: Text


class DeployEndpoint(Record):
    """The server that a client is told of."""

    base_url: Text
    model: Text
    context_tokens: int
    answered: bool
    """It was asked and has the model; otherwise its address is taken on trust."""


class DeployDocument(Document):
    """A model in a system: what was written, what to type, and what was proved."""

    schema_: Literal["dfqs.deploy/1"] = Field(default="dfqs.deploy/1", alias="schema")
    target: Text
    title: Text
    model: Text
    listed_as: Text
    context_tokens: int
    endpoint: DeployEndpoint | None
    """Null: the system reads the file itself."""
    dry_run: bool
    changed: bool
    """Anything was, or with `dry_run` would be, written."""
    files: tuple[DeployedFile, ...]
    registered_by: tuple[DeployCommand, ...]
    """Commands that tell the system of the model; run where its program is installed."""
    use: tuple[DeployCommand, ...]
    notes: tuple[Text, ...]
    level: Literal["static", "registered", "live"] | None
    """What was proved: what was written says what it should; the system lists the model; it answered with it. Null:
    nothing was looked at (`dry_run`), or something is wrong."""
    level_reason: Text | None
    """Why it is not known that the system has it."""
    wrong: tuple[Text, ...]
    backups: Text | None
    """The directory with what was there before; `--undo` reads it."""

    @classmethod
    def of(
        cls,
        target: Target,
        model: LocalModel,
        rendering: Rendering,
        plan: WritePlan,
        system: System,
        *,
        endpoint: DeployEndpoint | None,
        ways: dict[str, str],
        verification: Verification | None,
        backups: str | None,
        dry_run: bool,
    ) -> "DeployDocument":
        """One deployment, planned or done.

        Args:
            ways: how the model's files were placed, by path.
        """
        return cls(
            target=target.name,
            title=target.title,
            model=model.path,
            listed_as=rendering.listed_as or model.identifier,
            context_tokens=model.context_tokens,
            endpoint=endpoint,
            dry_run=dry_run,
            changed=plan.is_needed,
            files=_files(plan, ways),
            registered_by=tuple(_command(command, system) for command in rendering.register),
            use=tuple(_command(command, system) for command in rendering.use),
            notes=rendering.notes,
            level=verification.level if verification is not None else None,
            level_reason=verification.listed if verification is not None else None,
            wrong=verification.wrong if verification is not None else (),
            backups=backups,
        )


class UndoDocument(Document):
    """A deployment that was taken back."""

    schema_: Literal["dfqs.deploy-undo/1"] = Field(default="dfqs.deploy-undo/1", alias="schema")
    target: Text
    model: Text
    done: tuple[Text, ...]
    """A line for each thing that was taken back, or left as it is."""


def endpoint_record(endpoint: Endpoint, *, answered: bool) -> DeployEndpoint:
    """Without its key."""
    return DeployEndpoint(
        base_url=endpoint.base_url,
        model=endpoint.model,
        context_tokens=endpoint.context_tokens,
        answered=answered,
    )


def _command(command: Command, system: System) -> DeployCommand:
    return DeployCommand(about=command.about, line=command_line(command, system))


def _files(plan: WritePlan, ways: dict[str, str]) -> tuple[DeployedFile, ...]:
    found = [
        DeployedFile(
            path=change.path,
            kind="configuration" if hasattr(change.part, "edits") else "file",
            action="unchanged" if not change.is_needed else "made" if change.before is None else "changed",
            bytes=len(change.after),
        )
        for change in plan.changes
    ]
    for place in plan.placements:
        action = ways.get(str(place.path)) or (place.ways[0] if place.ways else "unchanged")
        found.append(DeployedFile.model_validate({
            "path": place.path, "kind": "model", "action": action, "bytes": place.bytes
        }))  # fmt: skip
    return tuple(found)
