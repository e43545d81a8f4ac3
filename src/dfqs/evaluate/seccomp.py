"""The system-call filter of the sandbox, as the classic BPF program that bubblewrap takes.

Allowed is what stands in `syscalls.ALLOWED`, some of it with some arguments only; everything else is refused, so that
what a kernel offers tomorrow is refused too. A refused call fails and kills nothing. Format: `struct sock_filter` of
<linux/filter.h>.
"""

import struct

from dfqs.evaluate.syscalls import ALLOWED, ARGUMENT_RULES, ArgumentRule

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
"""SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, and SECCOMP_RET_ERRNO with these numbers."""
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
FIRST_NEW_CALL = 424
"""From here on (Linux 5.1) numbers are the same everywhere, and every C library does without the call when the kernel
does not know it. Older ones are not permitted instead: a library does not look for another way then, and Python says
`PermissionError`."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of the machines that `platform.machine()` names so."""

Instruction = tuple[int, int, int, int]
"""Operation, how far to jump when true, when false, and the value."""


def filter_program(machine: str) -> bytes:
    """The filter for `machine` (`platform.machine()`): 8 bytes an instruction.

    Raises:
        KeyError: no table for that machine.
    """
    architecture = ARCHITECTURES[machine]
    column = list(ARCHITECTURES).index(machine)
    numbers = {name: number for name, pair in ALLOWED.items() if (number := pair[column]) is not None}
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        # The x32 ABI has other numbers for the same calls.
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, ENOSYS),
    ]
    for name, rule in ARGUMENT_RULES.items():
        if name in numbers:
            block = _argument_block(rule)
            program += [(_JUMP_EQUAL, 0, len(block), numbers.pop(name)), *block]
    for number in numbers.values():
        program += _answer_when(_JUMP_EQUAL, number, ALLOW)
    program += [*_answer_when(_JUMP_AT_LEAST, FIRST_NEW_CALL, ENOSYS), (_RETURN, 0, 0, EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _argument_block(rule: ArgumentRule) -> list[Instruction]:
    """Looks at the argument, and answers in every case."""
    # The lower half: both machines are little-endian.
    block: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * rule.argument)]
    for value in rule.only:
        block += _answer_when(_JUMP_EQUAL, value, ALLOW)
    for value in rule.never:
        block += _answer_when(_JUMP_EQUAL, value, EPERM)
    if rule.without_bits:
        block += _answer_when(_JUMP_ANY_BIT, rule.without_bits, EPERM)
    return [*block, (_RETURN, 0, 0, EPERM if rule.only else ALLOW)]


def _answer_when(comparison: int, value: int, answer: int) -> list[Instruction]:
    return [(comparison, 0, 1, value), (_RETURN, 0, 0, answer)]
