"""`dfqs conform`: a model against the specification, clause by clause."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.options import Json, Model
from dfqs.cli.output import column_table, emit, escape_controls, print_parts, print_plain, warn
from dfqs.report.conform import judge
from dfqs.report.conform_facts import gather_facts
from dfqs.report.conformance import ConformanceDocument, Judgement
from dfqs.report.reading import read_reported

FAILED, NOT_TESTED = 1, 4


def command(
    model: Model,
    report: Annotated[
        Path,
        typer.Option("--report", help="A directory of dfqs eval, or a report.json.", show_default=False),
    ],
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="A document to judge by: --json of plan, route check or route diff. Those that lie beside the report "
            "are taken by themselves.",
            show_default=False,
        ),
    ] = None,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Do not read the whole file; whether the report is of it stays untested.")
    ] = False,
    json_: Json = False,
) -> None:
    """Hold a model against the specification: PASS, FAIL or NOT TESTED for every clause, with what the verdict rests on
    (docs/specification.md), and what became of the card's own claims.

    Exit code 0: every SHALL passes, and nothing but a MAY fails. 1: another clause fails. 4: none does, and a SHALL was
    not tested.

    Example: dfqs conform model.gguf --report results
    """
    reported = read_reported(report)
    with progress_bar("hashing") as progress:
        facts = gather_facts(model, reported, with_ or (), hash_bytes=not no_hash, progress=progress)
    for stranger in facts.strangers:
        warn(f"{stranger}, and was left out")
    document = judge(facts)
    emit(document, json_, lambda: _show(document))
    if any(clause.verdict is Judgement.FAIL and clause.level != "MAY" for clause in document.clauses):
        raise typer.Exit(FAILED)
    if not document.conforms:
        raise typer.Exit(NOT_TESTED)


def _show(document: ConformanceDocument) -> None:
    columns = ("", "", "clause", "verdict", "evidence", "file")
    table = column_table(*columns, words=columns)
    for clause in document.clauses:
        words = (clause.id, clause.level, clause.clause, clause.verdict.value, clause.evidence, clause.source)
        table.add_row(*map(escape_controls, words))
    print_parts(table)
    missing = {clause.command for clause in document.clauses if clause.id in document.untested}
    for command_ in sorted(missing):
        print_plain(f"not tested; tells more: {command_}")
    print_plain("")
    print_plain("Claims of the specification's card:")
    titles = ("section", "claim", "standing", "figure")
    table = column_table(*titles, words=titles)
    for claim in document.claims:
        table.add_row(*map(escape_controls, (claim.section, claim.claim, claim.standing.value, claim.figure)))
    print_parts(table)
    passed = len(document.clauses) - len(document.failed) - len(document.untested)
    print_plain("")
    print_plain(
        f"{passed} of {len(document.clauses)} clauses pass, {len(document.failed)} fail, "
        f"{len(document.untested)} not tested; every SHALL passes: {'yes' if document.conforms else 'no'}"
    )
