"""What `dfqs deploy` shows people."""

from dfqs.cli.documents.deploy import DeployDocument, UndoDocument
from dfqs.cli.output import column_table, note, out, print_plain
from dfqs.targets.listing import DeployListDocument, TargetRow
from dfqs.units import format_bytes

_TAKES = {
    "path": "reads the file where it lies",
    "link": "a link in its directory",
    "copy": "copies it",
    "endpoint": "talks with a server",
    "download": "a notebook",
}


def show_list(document: DeployListDocument) -> None:
    """A row a system; what is installed and what is blocked below it."""
    columns = ("target", "state", "how", "extra disk", "GGUF names", "build")
    table = column_table(*columns, words=columns)
    for row in document.targets:
        names, build = (row.dialect.names, row.dialect.build) if row.dialect is not None else ("-", "-")
        table.add_row(row.target, row.state, _TAKES[row.takes], _disk_words(row), names, build)
    out.print_table(table)
    for row in document.targets:
        if row.installed is not None:
            note(f"{row.target}: {row.installed}")
    for row in document.targets:
        if row.reason is not None:
            note(f"{row.target} is blocked: {row.reason}")


def show_deployment(document: DeployDocument) -> None:
    """What was written, what to type, and what was proved."""
    for file in document.files:
        would = "would be " if document.dry_run and file.action not in ("unchanged",) else ""
        print_plain(f"{would}{file.action}: {file.path}")
    for command in document.registered_by:
        print_plain(f"{'would run' if document.dry_run else 'registered by'}: {command.line}")
    for command in document.use:
        print_plain(f"# {command.about}")
        print_plain(command.line)
    for line in document.notes:
        note(line)
    for line in document.wrong:
        note(f"wrong: {line}")
    if document.dry_run:
        note("nothing was written")
        return
    if document.level is not None:
        reason = f" ({document.level_reason})" if document.level_reason is not None else ""
        note(f"proved: {document.level}{reason}")
    if document.backups is not None:
        note(f"back: dfqs deploy {document.target} MODEL --undo; what was there before is kept in {document.backups}")


def show_undone(document: UndoDocument) -> None:
    """A line for each thing."""
    for line in document.done:
        print_plain(line)
    note(f"{document.target}: undone")


def _disk_words(row: TargetRow) -> str:
    if row.disk_high_bytes is None or row.disk_low_bytes is None:
        return {"copy": "a copy, or two", "link": "none where it can link"}.get(row.takes, "none")
    low, high = format_bytes(row.disk_low_bytes), format_bytes(row.disk_high_bytes)
    rather = f"{low} to {high}" if row.disk_low_bytes else f"none, or {high} where it cannot link"
    needed = low if low == high else rather
    free = f", {format_bytes(row.disk_free_bytes)} free" if row.disk_free_bytes is not None else ""
    return needed + free
