"""Configurations are anybody's: hostile ones are refused in a sentence and stay; links are followed within the home."""

import json
from pathlib import Path

import pytest
from deployments import Place, make_place

from dfqs.errors import FormatError, UsageError
from dfqs.targets.catalogue import find_target
from dfqs.targets.contract import Site
from dfqs.targets.jan import Jan
from dfqs.targets.lemonade import Lemonade
from dfqs.targets.lm_studio import LMStudio
from dfqs.targets.look import look_at_all
from dfqs.targets.plan import plan_write

USERS = '// mine\n{"theme": "dark"}\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    return make_place(tmp_path)


def test_a_configuration_behind_a_link_of_the_users_is_changed_where_it_is(place: Place) -> None:
    pi = find_target("pi")
    real = place.home / "dotfiles" / "pi.json"
    real.parent.mkdir()
    real.write_text(USERS)
    link = place.home / ".pi/agent/models.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)

    place.write(pi)

    assert link.is_symlink() and "8080" in real.read_text()
    place.undo(pi)
    assert link.is_symlink() and real.read_text() == USERS


def test_nothing_is_written_through_a_link_out_of_the_home(place: Place, tmp_path: Path) -> None:
    pi = find_target("pi")
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    link = place.home / ".pi/agent/models.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)

    with pytest.raises(UsageError, match="nothing is written through it"):
        place.write(pi)
    assert outside.read_text() == "{}"


def test_a_new_configuration_with_a_key_in_it_is_for_this_user_only(place: Place) -> None:
    pi = find_target("pi")
    plan = plan_write(place.render(pi), None, place.home, secret=True)

    assert [change.mode for change in plan.changes] == [0o600]


HOSTILE = {
    "huge": b" " * (5 << 20),
    "not text": b"\xff\xfe{}",
    "key twice": b'{"providers": {}, "providers": {}}',
    "deep": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "a list": b"[]",
    "a list inside": b'{"providers": []}',
    "numbers without end": b"[" + b"9" * 100_000 + b"]",
    "open comment": b"{/* ",
    "half a pair": b'{"a": "\\ud800"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_configuration_is_refused_in_a_sentence_and_stays(kind: str, place: Place) -> None:
    pi = find_target("pi")
    path = place.home / ".pi/agent/models.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[kind])

    with pytest.raises(FormatError):
        place.write(pi)
    assert path.read_bytes() == HOSTILE[kind]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\nb: *a\n",
        "model: &m {provider: x}\nother: *m\n",
        "x: !!python/object:os.system {}\n",
        "!include y\n",
        "? [a]\n: b\n",
        "---\na: 1\n---\nb: 2\n",
        "a: 1\na: 2\n",
        "&r [*r]\n",
    ],
)
def test_yaml_with_anchors_tags_and_documents_is_changed_rightly_or_left_alone(text: str, place: Place) -> None:
    hermes = find_target("hermes")
    path = place.home / ".hermes/config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)

    try:
        place.write(hermes)
    except FormatError:
        assert path.read_text() == text
    else:
        place.undo(hermes)
        assert path.read_text() == text


def test_yaml_that_multiplies_itself_is_refused_quickly(place: Place) -> None:
    hermes = find_target("hermes")
    path = place.home / ".hermes/config.yaml"
    path.parent.mkdir(parents=True)
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(rows) + "\n")

    with pytest.raises(FormatError, match="more values than a configuration has"):
        place.write(hermes)


def test_paths_of_lm_studio_jan_and_lemonade_follow_what_they_are_told(tmp_path: Path) -> None:

    home = tmp_path
    (home / "elsewhere").mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{home}/elsewhere\n")
    (home / "elsewhere/settings.json").write_text(json.dumps({"downloadsFolder": f"{home}/big"}))
    (home / ".local/share/Jan").mkdir(parents=True)
    (home / ".local/share/Jan/settings.json").write_text(json.dumps({"data_folder": f"{home}/jan"}))
    (home / ".config/lemonade").mkdir(parents=True)
    (home / ".config/lemonade/config.json").write_text(json.dumps({"extra_models_dir": f"{home}/ggufs"}))
    studio, jan, lemonade = find_target("lm-studio"), find_target("jan"), find_target("lemonade")
    assert isinstance(studio, LMStudio) and isinstance(jan, Jan) and isinstance(lemonade, Lemonade)
    site = look_at_all(Site("linux", home, {}), (studio, jan, lemonade))

    assert studio.models_directory(site) == home / "big"
    assert jan.data_directory(site) == home / "jan"
    assert lemonade.models_directory(site) == (home / "ggufs", True)
    (home / "elsewhere/settings.json").write_text('{"downloadsFolder": [')
    (home / ".local/share/Jan/settings.json").write_text("[" * 100_000)
    broken = look_at_all(Site("linux", home, {}), (studio, jan))
    assert studio.models_directory(broken) == home / "elsewhere/models"
    assert jan.data_directory(broken) == home / ".local/share/Jan/data"
    assert jan.data_directory(Site("linux", home, {"JAN_DATA_FOLDER": "/jan"})) == Path("/jan")
