"""A repository of shards on a fake Hub, fresh for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import FakeHub
from pull_cases import Repository, write_repository


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], bytes]:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def repository(made: tuple[list[Path], bytes]) -> Iterator[Repository]:
    shards, merged = made
    with FakeHub(files={path.name: path.read_bytes() for path in shards}) as hub:
        yield Repository(hub, shards, merged)
