"""How long a server is waited for, how often it is asked again, and that nobody waits in silence."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dfqs.errors import NetworkError
from dfqs.pull import Hub, RetryPolicy, plan_pull, pull
from dfqs.pull.retry import retry_after_s
from hub_server import FakeHub, Reply, Request
from pull_cases import CHUNK_BYTES, HASTY, single_model


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(files={"m.gguf": single_model()}) as hub:
        yield hub


def test_back_off_grows_is_bounded_and_believes_retry_after_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    retry = RetryPolicy(first_wait_s=1, longest_wait_s=10)

    assert [retry.wait_s(n) for n in range(6)] == [1, 2, 4, 8, 10, 10]
    assert retry.wait_s(0, 7.0) == 7
    assert retry.wait_s(0, 1e9) == 300
    assert retry_after_s("12") == 12
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None


@pytest.mark.parametrize(("status", "asked"), [(500, 3), (503, 5)])
def test_every_wait_for_the_hub_is_told_and_a_fault_is_asked_about_less_often_than_a_busy_server(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, status: int, asked: int
) -> None:
    monkeypatch.setattr("dfqs.pull.hub.METADATA_ATTEMPTS", 2)
    told: list[str] = []
    hub.api_troubles = [(status, {})] * 20

    with pytest.raises(NetworkError, match=f"HTTP {status}; try again later"):
        Hub(hub.endpoint, "none", replace(HASTY, tell=told.append)).list_repo(hub.repo)

    assert 20 - len(hub.api_troubles) == asked
    assert len(told) == asked - 1
    assert f"the Hub answered owner/model@main with HTTP {status}; asking again in " in told[0]
    assert told[-1].endswith(f"({asked - 1} of {asked - 1})")


def test_of_connections_that_fail_together_one_says_that_it_waits(hub: FakeHub, tmp_path: Path) -> None:
    told: list[str] = []
    plan = plan_pull(Hub(hub.endpoint, "none", HASTY), hub.repo, chunk_bytes=CHUNK_BYTES)

    def fail(request: Request, reply: Reply) -> None:
        if request.number < first + 6:
            reply.status = 500

    first = len(hub.data_requests)
    hub.trouble = fail
    client = Hub(hub.endpoint, "none", replace(HASTY, tell=told.append))
    pull(plan, client, tmp_path / "m.gguf", connections=3, use_cache=False)

    assert 1 <= len(told) <= 6
    assert all("HTTP 500; asking again in " in line for line in told)
