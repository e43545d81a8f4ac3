"""What a chat template is tried on before a model is loaded with it."""

from typing import Any

USER = {"role": "user", "content": "DFQS-PLACE-OF-THE-TEXT"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
_TOOLS = [{"type": "function", "function": {"name": "now", "description": "Time.", "parameters": {"type": "object"}}}]
PROBES: tuple[tuple[list[dict[str, Any]], dict[str, Any]], ...] = (
    ([USER], {}),
    ([_SYSTEM, USER], {}),
    ([USER, {"role": "assistant", "content": "Yes."}, USER], {}),
    ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], {}),
    ([_SYSTEM, USER], {"tools": _TOOLS}),
    (
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": "now", "tool_call_id": "call00001", "content": "12:00"},
            USER,
        ],
        {"tools": _TOOLS},
    ),
)
"""Conversations of every kind, with what else a template is told."""
