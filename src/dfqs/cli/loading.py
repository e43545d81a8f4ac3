"""What every verb that loads a model says about memory: before it loads, and at its end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.cli.output import note
from dfqs.model.files import ModelFiles
from dfqs.runtime.given_template import GivenTemplate
from dfqs.runtime.loading import InMemory, StreamFigures, with_template
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import LoadPlan, Streamed, choose_load
from dfqs.streaming.verification import CheckMode, read_recorded
from dfqs.units import format_bytes, format_duration


@dataclass(frozen=True, slots=True)
class Checking:
    """What `--check` and `--manifest` ask for."""

    mode: CheckMode | None = None
    manifest: Path | None = None

    def applied(self, model: ModelFiles, plan: LoadPlan) -> LoadPlan:
        """The plan with what is streamed held against the manifest.

        Raises:
            UsageError, FormatError: as `read_recorded`.
        """
        if isinstance(plan.order, Streamed):
            return plan.checked_by(read_recorded(model, self.mode, self.manifest))
        if self.mode in ("sampled", "all"):
            note(
                "note: --check is for what is streamed, and this model is not; 'dfqs verify --manifest' checks the file"
            )
        return plan

    def settled(self, model: ModelFiles, plan: LoadPlan) -> LoadPlan:
        """As `applied`, and say how the model is going to be loaded, where that is worth a line."""
        plan = self.applied(model, plan)
        note_plan(plan)
        return plan


NOT_ASKED = Checking()
"""Sampled where the model's manifest has hashes of experts."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What a verb was told about loading a model: `--ram`, `--force`, `--check`, `--manifest`, `--chat-template`."""

    ram: str | None
    force: bool
    checking: Checking = NOT_ASKED
    template: GivenTemplate | None = None

    def plan(
        self,
        model: ModelFiles,
        contexts: Sequence[ContextSettings],
        smaller: str,
        *,
        beside_bytes: int = 0,
        whole: InMemory | None = None,
    ) -> LoadPlan:
        """Look at memory before a model is loaded, and say in a line what there is to say.

        Args:
            contexts: that are made, one at a time.
            smaller, beside_bytes, whole: as `choose_load` takes them.

        Raises:
            SpaceError: it does not fit; says what to do.
            UsageError, FormatError: as `read_recorded`.
        """
        first, *others = contexts
        chosen = choose_load(
            model,
            first,
            self.ram,
            others=others,
            beside_bytes=beside_bytes,
            whole=whole,
            force=self.force,
            smaller=smaller,
        )
        plan = self.checking.settled(model, chosen)
        return replace(plan, order=with_template(plan.order, self.template))


def note_plan(plan: LoadPlan) -> None:
    """Say how a model is going to be loaded, where that is worth a line."""
    if line := plan.describe():
        note(line)


def note_streaming(figures: StreamFigures | None) -> None:
    """Say at the end what streaming did; nothing of a model that was in memory."""
    if figures is not None and figures.passes:
        note(describe_streaming(figures))


def describe_streaming(figures: StreamFigures) -> str:
    """One line: what the disk gave, how often it was not needed, and how near the rate came to what it allows."""
    passes = max(figures.passes, 1)
    each = figures.bytes_per_token
    shares = f"{format_bytes(figures.read_bytes / passes)} each"
    parts = [
        f"streamed {format_bytes(figures.read_bytes)} in {figures.passes:,} passes "
        f"({shares if each is None else f'{shares}, {format_bytes(each)} a token'})"
    ]
    if figures.hit_rate is not None:
        parts.append(f"{figures.hit_rate:.0%} of the experts were in memory")
    waited = f"waited {format_duration(figures.wait_s)} for the disk"
    if figures.disk_bytes_per_s is not None:
        waited += f", which gave {format_bytes(figures.disk_bytes_per_s)}/s while the model was loaded"
    parts.append(waited)
    if figures.bound_share is not None:
        parts.append(f"{figures.bound_share:.0%} of the rate that computing and then reading at that rate would have")
    if figures.ahead_bytes:
        parts.append(f"{format_bytes(figures.ahead_bytes)} were there before they were chosen")
    if figures.checked is not None:
        parts.append(f"{figures.checked:,} of what was read checked against the manifest")
    return "; ".join(parts)
