"""Text as YAML that every reader takes for the same: double-quoted, with everything escaped that is not plain. Pure.

A JSON string is almost one, but YAML joins no surrogate pairs and refuses some characters that JSON leaves as they are.
"""


def yaml_scalar(text: str) -> str:
    """A double-quoted scalar."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    code = ord(char)
    if 0x20 <= code < 0x7F or (code > 0xA0 and code < 0xD800 and char.isprintable()):
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
