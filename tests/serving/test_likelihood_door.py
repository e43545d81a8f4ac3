"""`/v1/completions` with echo and logprobs: what a harness reads out of it is what the engine computes."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.likelihood import LikelihoodSession
from dfqs.serving.engine import ServerSettings
from dfqs.serving.http_head import HttpRefusal, RequestHead, parse_request_head
from dfqs.serving.likelihood_door import LikelihoodDoor
from front_server import fronted, status
from harness_inputs import items

CHOICES = [(item["question"], choice) for item in items(2) for choice in item["choices"]]


def head(*headers: str, path: str = "/v1/completions") -> RequestHead:
    lines = "".join(f"{line}\r\n" for line in ("Host: localhost", *headers))
    return parse_request_head(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode())


def payload(prompt: object, **others: object) -> dict[str, Any]:
    """As lm-evaluation-harness's `local-completions` asks."""
    asked = {
        "prompt": prompt,
        "model": "m",
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    return {**asked, **others}


def read_as_the_harness_does(answer: dict[str, Any], lengths: list[int]) -> list[tuple[float, bool]]:
    """Sum and greediness of what follows the context, from the answer alone; its last token is one that was written."""
    found = []
    for choice, length in zip(sorted(answer["choices"], key=itemgetter("index")), lengths, strict=True):
        values = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        found.append((sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))))
    return found


@pytest.fixture(scope="module")
def settings(tiny_deepseek4: Path) -> ServerSettings:
    return ServerSettings(tiny_deepseek4, "tiny", context_tokens=320)


@pytest.fixture(scope="module")
def door(settings: ServerSettings) -> Iterator[LikelihoodDoor]:
    opened = LikelihoodDoor(settings, threads=1)
    yield opened
    opened.close()


def ask(door: LikelihoodDoor, document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asyncio.run(door.answer(head(), document)))
    return found


def test_what_a_harness_reads_is_what_the_engine_computes(door: LikelihoodDoor, tiny_deepseek4: Path) -> None:
    with LikelihoodSession(tiny_deepseek4, context_tokens=320, threads=1) as session:
        asked = session.encode(CHOICES)
        truth = session.score_tokens(asked)

    prompts = [[*each.context, *each.continuation] for each in asked]
    answers = [ask(door, payload(prompts[:5])), ask(door, payload(prompts[5:]))]

    lengths = [len(each.context) for each in asked]
    found = [
        *read_as_the_harness_does(answers[0], lengths[:5]),
        *read_as_the_harness_does(answers[1], lengths[5:]),
    ]
    assert [each[0] for each in found] == pytest.approx([score.logprob for score in truth], abs=1e-4)
    assert [each[1] for each in found] == [score.is_greedy for score in truth]


def test_text_is_echoed_with_a_number_for_every_token_but_the_first(door: LikelihoodDoor) -> None:
    answer = ask(door, payload("Once upon a time", max_tokens=0, logprobs=3))

    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "Once upon a time"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert all(3 <= len(top) <= 4 for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"][0] == 0
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == len(logprobs["tokens"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [1000] * 400}, "320 fit"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": []}, "'prompt' has to be"),
        ({"prompt": [[1], "a", {}]}, "'prompt' has to be"),
        ({"prompt": [1, 1 << 30]}, "outside the vocabulary"),
        ({"max_tokens": 5}, "'max_tokens'"),
        ({"logprobs": 10_000}, "'logprobs'"),
        ({"logprobs": "x"}, "'logprobs'"),
        ({"stream": True}, "'stream'"),
        ({"temperature": 1}, "'temperature'"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(
    door: LikelihoodDoor, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HttpRefusal, match=message) as refusal:
        ask(door, payload(**{"prompt": "Once", **changes}))

    assert refusal.value.status == 400
    assert ask(door, payload("Once upon"))["choices"]


def test_a_server_that_keeps_to_its_memory_says_that_it_has_none_for_likelihoods(settings: ServerSettings) -> None:
    with pytest.raises(HttpRefusal, match="--ram") as refusal:
        ask(LikelihoodDoor(replace(settings, bounded=True)), payload("Once"))

    assert refusal.value.status == 501


def test_no_second_model_is_loaded_where_there_is_no_memory_for_it(settings: ServerSettings) -> None:
    with pytest.raises(HttpRefusal, match=r"they take .* more, and .* are free") as refusal:
        ask(LikelihoodDoor(replace(settings, likelihood_bytes=1 << 60), threads=1), payload("Once"))

    assert refusal.value.status == 503


def test_only_requests_for_a_prompts_likelihood_are_taken(door: LikelihoodDoor) -> None:
    assert door.wants(head(), payload("x"))
    assert door.wants(head(path="/v1/complet%69ons"), payload("x"))
    assert not door.wants(head(), payload("x", echo=False))
    assert not door.wants(head(), payload("x", logprobs=None))
    assert not door.wants(head(path="/v1/chat/completions"), payload("x"))
    assert not door.wants(head(), {"echo": "true", "logprobs": 1})
    assert not door.wants(head(), {"prompt": "echo"})


class Fixed:
    """Answers what it is asked, or refuses."""

    def wants(self, head: RequestHead, document: Mapping[str, Any]) -> bool:
        return "echo" in document

    async def answer(self, head: RequestHead, document: Mapping[str, Any]) -> bytes:
        if document["echo"] == "refuse":
            raise HttpRefusal(501, "no memory for it")
        return b'{"choices": []}'


def test_the_front_answers_such_a_request_itself_and_passes_on_the_others(tmp_path: Path) -> None:
    def post(body: bytes) -> bytes:
        lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        return served.send("\r\n".join(lines).encode() + body)

    with fronted(tmp_path) as served:
        served.front.dispatch.own = Fixed()
        own, refused, others = post(b'{"echo": true}'), post(b'{"echo": "refuse"}'), post(b'{"prompt": "x"}')
        passed_on = len(served.engine.seen)

    assert (status(own), own.split(b"\r\n\r\n", 1)[1]) == (200, b'{"choices": []}')
    assert status(refused) == 501
    assert b"no memory for it" in refused
    assert status(others) == 200
    assert passed_on == 1
