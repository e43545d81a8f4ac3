"""Whether a tool answers with the model: a question that nobody else can have asked, followed to the server and back.

The tool gets a configuration of its own in a folder of ours, and the address of a witness in front of the server. It is
live when the question's nonce stood in a request that the server got, and the tool printed exactly the text that the
server answered that request with. Its exit code is told and proves nothing.
"""

import os
import re
import secrets
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.serving.witness import Witness, Witnessed
from dfqs.targets.contract import Endpoint, LocalModel, Target
from dfqs.targets.kept import Deployment
from dfqs.targets.look import look_at_all, read_site
from dfqs.targets.plan import plan_write
from dfqs.targets.write import write_planned

LONGEST_S = 900.0
"""A coding agent sends thousands of tokens before the question."""
MOST_TOKENS = 160
"""Of an answer."""
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of asking."""

    live: bool
    nonce: str
    reason: str
    """Why it is not proved, or how it is."""
    exit_code: int | None
    printed: str
    answered: str | None
    """By the server, to the request with the nonce."""
    requests: int
    """That the server got meanwhile."""
    prompt_bytes: int
    """Of the request with the nonce."""


def prove_live(
    target: Target, model: LocalModel, endpoint: Endpoint, folder: Path, *, longest_s: float = LONGEST_S
) -> Proof:
    """Ask through a tool, and hold what it prints against what the server answered.

    Args:
        folder: empty; the tool's configuration goes there, and nothing of the user's is touched.

    Raises:
        UsageError: there is no way to ask through this tool, or it is not installed.
    """
    nonce = f"nonce-{secrets.token_hex(6)}"
    with Witness(endpoint.root, most_tokens=MOST_TOKENS) as witness:
        told = replace(endpoint, base_url=f"{witness.url}/v1")
        command = target.ask(told, f"Please say {nonce} once.", folder)
        if command is None:
            raise UsageError(f"there is no way to ask one question through {target.title} from here")
        _configure(target, model, told, folder, dict(command.environment))
        environment = {**os.environ, **command.environment, "HOME": str(folder)}
        try:
            done = subprocess.run(
                command.words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=longest_s,
                env=environment,
                cwd=folder,
                check=False,
            )
        except FileNotFoundError:
            raise UsageError(f"{command.words[0]} is not installed, or not on the search path") from None
        except subprocess.TimeoutExpired as error:
            printed = (error.stdout or b"").decode("utf-8", "replace")
            return _judge(witness.seen, nonce, None, printed, f"it did not end within {longest_s:.0f} s")
        said = done.stdout.decode("utf-8", "replace")
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return _judge(witness.seen, nonce, done.returncode, said, complaint[-1] if complaint else "")


def _configure(
    target: Target, model: LocalModel, endpoint: Endpoint, folder: Path, environment: dict[str, str]
) -> None:
    """Write what deploying would write, into the folder."""
    site = replace(read_site((target,)), home=folder, environment=environment, seen={})
    rendering = target.render(model, look_at_all(site, (target,)), endpoint)
    fresh = Deployment(
        target=target.name,
        model=str(model.path),
        listed_as=endpoint.model,
        done=False,
        parts=(),
        directories=(),
        undone_by=(),
        model_stamp="",
    )
    write_planned(plan_write(rendering, None, folder), rendering, folder / "deployment", fresh)


def _judge(seen: list[Witnessed], nonce: str, exit_code: int | None, printed: str, complaint: str) -> Proof:
    """Hold what was printed against what was answered."""
    printed = _CONTROLS.sub("", printed).strip()
    asked = [each for each in seen if each.method == "POST" and each.asks(nonce)]
    answers = [text for each in asked if (text := each.answer()) is not None]
    # A tool may have asked more than once with our question in it: for a title, or after using a tool of its own.
    same = [text for text in answers if printed and printed == text.strip()]
    live, found = bool(same), same or answers
    answered = found[-1] if found else None
    if live:
        reason = "the nonce stood in the request that the server got, and what was printed is what it answered"
    elif not asked:
        reason = "no request that the server got had the nonce in it"
    elif answered is None:
        reason = "the server gave no text to the request with the nonce"
    else:
        reason = "what was printed is not what the server answered"
    if not live and complaint:
        reason += f"; it says: {complaint[:200]}"
    size = max((len(each.request) for each in asked), default=0)
    return Proof(live, nonce, reason, exit_code, printed, answered, len(seen), size)
