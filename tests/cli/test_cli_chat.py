"""`dfqs chat` as a real process, with a terminal where a person would have one."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cli_processes import RunningDfqs, run_dfqs, wait_until_gone

LONG = ("--temp", "2", "-n", "4000", "--seed", "1")
"""An answer that is still being written when something happens: without a seed, some end at once."""


def chat_in_terminal(path: Path, *arguments: str) -> RunningDfqs:
    return RunningDfqs("chat", path, "--ctx", "2048", "--threads", "1", *arguments, terminal=True)


def test_a_conversation_through_pipes_is_answered_line_by_line_from_one_cache(tiny_moe: Path) -> None:
    lines = "Hello\nWhat did I say?\n\n/reset\nHello\n/exit\nnever read\n"
    done = run_dfqs("chat", tiny_moe, "--temp", "0", "-n", "6", "--ctx", "512", "--json", stdin=lines)

    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert len(answers) == 3
    assert answers[1]["reused_tokens"] > 0
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"]
    # A new conversation is new: the same answer as at first.
    assert answers[2]["text"] == answers[0]["text"]
    assert "a new conversation" in done.stderr
    assert "/help lists what else can be said" in done.stderr


def test_the_end_of_input_leaves(tiny_moe: Path) -> None:
    done = run_dfqs("chat", tiny_moe, "--ctx", "512", stdin="")

    assert (done.returncode, done.stdout) == (0, "")


def test_a_system_message_opens_every_conversation(tiny_moe: Path) -> None:
    arguments = ("chat", tiny_moe, "--temp", "0", "-n", "1", "--ctx", "512", "--json")
    plain, opened = (
        json.loads(run_dfqs(*arguments, *more, stdin="Hello\n").stdout) for more in ((), ("--system", "Be brief."))
    )

    assert plain["prompt_tokens"] != opened["prompt_tokens"]


def test_a_message_too_long_for_the_context_is_refused_and_the_conversation_goes_on(smollm2_gguf: Path) -> None:
    lines = "word " * 600 + "\nHello\n"
    done = run_dfqs("chat", smollm2_gguf, "--temp", "0", "-n", "3", "--ctx", "256", "--json", stdin=lines)

    assert done.returncode == 0
    assert "the prompt has" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_told_to_forget_it_leaves_out_the_oldest_exchanges_and_says_which(tiny_moe: Path) -> None:
    lines = (
        "Tell me about Paris. " * 20 + "\nHello\n" + "What is a colour? " * 45 + "\n" + "word " * 900 + "\nAnd now?\n"
    )
    words = ("--temp", "0", "-n", "8", "--ctx", "512", "--when-full", "forget", "--json")
    done = run_dfqs("chat", tiny_moe, *words, stdin=lines)

    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    left_out = [line for line in done.stderr.splitlines() if line.startswith("the context of 512 tokens is full")]
    assert "left out: Tell me about Paris." in left_out[0]
    # Each question has its answer, but for the one that no forgetting makes short enough.
    assert [each["finish_reason"] for each in answers] == ["length"] * 4
    assert "what was left out is back: the question alone is too long" in done.stderr
    assert "the prompt has" in done.stderr and all(each["prompt_tokens"] <= 504 for each in answers)


def test_where_the_context_is_full_the_oldest_exchange_is_left_out_and_the_question_asked_again(
    tiny_moe: Path,
) -> None:
    answers, said = converse(
        tiny_moe, "Tell me about Paris. " * 50, "What is a colour? " * 50, "/forget", "/forget", "/forget"
    )

    assert len(answers) == 2
    assert "/forget leaves out the oldest exchange and asks again" in said
    assert "left out: Tell me" in said and "left out: What is" in said
    assert "there is nothing older to leave out" in said


def converse(path: Path, *lines: str) -> tuple[list[dict[str, Any]], str]:
    """Answers, and what was said on stderr."""
    arguments = ("chat", path, "--temp", "0", "-n", "4", "--ctx", "512", "--json")
    done = run_dfqs(*arguments, stdin="".join(f"{line}\n" for line in lines))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_slash_that_begins_no_command_begins_a_message_and_a_backslash_goes_on(tiny_moe: Path) -> None:
    answers, said = converse(tiny_moe, "/home/me is full", "one\\", "two\\", "three")

    assert len(answers) == 2
    assert "/home" not in said


def test_what_is_taken_back_was_never_said(tiny_moe: Path) -> None:
    answers, said = converse(
        tiny_moe,
        "Hello",
        "/undo",
        "/undo",
        "Hello",
        "/set temp 1.5",
        "/regenerate",
        "/set temp x",
        "/set warmth 1",
    )

    assert [answer["prompt_tokens"] for answer in answers] == [answers[0]["prompt_tokens"]] * 3
    assert answers[0]["text"] == answers[1]["text"]
    assert (answers[2]["settings"]["temperature"], answers[2]["settings"]["seed"]) == (1.5, 1)
    for sentence in ("taken back: Hello", "nothing was said yet", "'x' is no value for temp", "it was given 'warmth'"):
        assert sentence in said


def test_a_saved_conversation_goes_on_where_it_was_and_replaces_no_file(tiny_moe: Path, tmp_path: Path) -> None:
    file, strange = tmp_path / "talk.json", tmp_path / "strange.json"
    strange.write_text(
        '{"schema": "dfqs.conversation/1", "system": null, "messages": [{"role": "system", "content": ""}]}'
    )
    whole, first = converse(tiny_moe, "/system Be brief.", "Hello", f"/save {file}", f"/save {file}", "And you?")
    text = file.read_text(encoding="utf-8")
    rest, second = converse(tiny_moe, f"/load {strange}", f"/load {file}", "And you?")

    assert rest[0]["text"] == whole[1]["text"]
    assert rest[0]["prompt_tokens"] == whole[1]["prompt_tokens"]
    assert text == file.read_text(encoding="utf-8")
    assert "exists" in first
    assert "1 exchange loaded" in second
    assert "strange.json" in second


def test_pasted_lines_are_one_message(tiny_moe: Path) -> None:
    with chat_in_terminal(tiny_moe, "-n", "2") as running:
        running.read_until("> ")
        running.write("\x1b[200~" + "".join(f"line {n}\n" for n in range(200)) + "\x1b[201~\r")
        running.read_until("cut at --max-tokens")
        running.read_until("> ")
        running.write("/undo\r")
        taken = running.read_until("line 199")
        running.read_until("> ")
        running.write("/undo\r")
        running.read_until("nothing was said yet")

    assert "taken back: line 0" in taken


@pytest.mark.slow
def test_while_a_long_message_is_read_a_person_sees_how_far_and_the_answer_takes_its_place(smollm2_gguf: Path) -> None:
    """Seconds are what it is about; its parts are tested without them (test_cli_drawing, test_runtime_generation)."""
    with chat_in_terminal(smollm2_gguf, "-n", "2") as running:
        running.read_until("> ")
        running.write("\x1b[200~" + "".join(f"line {n} of a paste\n" for n in range(100)) + "\x1b[201~\r")
        running.read_until("reading the prompt")
        drawn = running.read_until("cut at --max-tokens")

    assert " tokens, " in drawn and " left" in drawn
    # Taken away, and nothing of it after the answer has begun.
    answer = drawn.rpartition("\x1b[2K")[2]
    assert "reading" not in answer and answer.strip()


def test_ctrl_c_interrupts_the_answer_and_not_the_program(smollm2_gguf: Path) -> None:
    with chat_in_terminal(smollm2_gguf, *LONG) as running:
        running.read_until("> ")
        running.write("Tell me everything.\n")
        running.read_until("everything.")
        running.read_until(" ")
        running.interrupt()
        running.read_until("interrupted")
        running.read_until("> ")
        running.write("/reset\n")
        running.read_until("a new conversation")
        workers = running.worker_pids()
        running.read_until("> ")
        running.write("/exit\n")
        assert running.wait() == 0

    assert len(workers) == 1
    wait_until_gone(workers)


def test_ctrl_c_at_the_prompt_shows_the_way_out_and_ctrl_d_takes_it(tiny_moe: Path) -> None:
    with chat_in_terminal(tiny_moe) as running:
        running.read_until("> ")
        running.press_ctrl_c_until("Ctrl-C interrupts an answer")
        running.read_until("> ")
        running.write("\x04")
        assert running.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_leaves_even_in_the_middle_of_an_answer(smollm2_gguf: Path, number: signal.Signals) -> None:
    with chat_in_terminal(smollm2_gguf, *LONG) as running:
        running.read_until("> ")
        running.write("Tell me everything.\n")
        running.read_until("everything.")
        running.read_until(" ")
        workers = running.worker_pids()
        running.process.send_signal(number)
        assert running.wait() == 128 + number

    wait_until_gone(workers)


def test_a_worker_that_dies_ends_the_program_with_one_sentence(smollm2_gguf: Path) -> None:
    with chat_in_terminal(smollm2_gguf, *LONG) as running:
        running.read_until("> ")
        (worker,) = running.worker_pids()
        running.write("Tell me everything.\n")
        running.read_until("everything.")
        os.kill(worker, signal.SIGKILL)
        running.read_until("dfqs: llama.cpp died with SIGKILL while answering")
        assert running.wait() == 3
