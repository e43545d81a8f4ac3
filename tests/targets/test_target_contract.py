"""One contract for every target: what it writes is what it renders, twice is once, and undone is as it was."""

import json
import os
from pathlib import Path

import pytest
from deployments import HOMES, MODELS, Place, described, make_place, model_at, pure_site, snapshot

from dfqs.errors import FormatError, UsageError
from dfqs.targets.catalogue import all_targets, find_target
from dfqs.targets.contract import Endpoint, Placed, System, Target
from dfqs.targets.verify import verify_written

GOLDEN = Path(__file__).parent / "golden"
SYSTEMS: tuple[System, ...] = ("linux", "macos", "windows")
TARGETS = all_targets()
ENDPOINT = Endpoint("http://127.0.0.1:8080/v1", "V4 Flash", 65_536)
WRITERS = [each for each in TARGETS if each.render(model_at(MODELS["linux"]), pure_site("linux"), ENDPOINT).parts]
CHANGERS = [each for each in WRITERS if each.name in ("pi", "hermes", "llama.cpp", "lemonade", "llama-cpp-python")]
USERS = {
    kind: (Path(__file__).parent / "users" / f"mine.{kind}.txt").read_text(encoding="utf-8")
    for kind in ("json", "yaml", "ini")
}
"""As people keep them: comments, odd spacing, entries of other programs."""
BROKEN = {"json": '{"a": 1,, }', "yaml": "a: [1\nb: }", "ini": "this is no line of it"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    return make_place(tmp_path)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_rendered_for_each_kind_of_machine_is_as_it_was_looked_over(target: Target, system: System) -> None:
    """Rules for paths, quoting and contents. `DFQS_WRITE_GOLDEN=1` writes the files, to be read in the diff."""
    endpoint = Endpoint("http://127.0.0.1:8080/v1", "V4 Flash", 65_536)
    found = described(target.render(model_at(MODELS[system]), pure_site(system), endpoint), system)
    path = GOLDEN / f"{target.name}-{system}.json"
    if os.environ.get("DFQS_WRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    assert found == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_says_what_it_is(target: Target) -> None:
    site = pure_site("linux")
    model = model_at(MODELS["linux"])

    assert target.name == target.name.lower() and " " not in target.name
    assert target.title and target.source
    space = target.space(model, site)
    assert (space is not None) == (target.takes in ("copy", "link"))
    if target.takes == "copy":
        assert space is not None and model.file_bytes <= space.low <= space.high
    if target.takes == "link":
        assert space is not None and space.low == 0 and space.high == model.file_bytes
    rendering = target.render(model, site, Endpoint("http://127.0.0.1:1/v1", "m", 65_536))
    assert rendering.use or target.name == "jan"
    assert all(path.is_absolute() and path.is_relative_to(HOMES["linux"]) for path in rendering.written)
    # A model is never moved: whatever goes into a directory of models has a way that leaves the source alone.
    assert all(part.ways[0] == "hard link" for part in rendering.parts if isinstance(part, Placed))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_rendering_twice_gives_the_same_and_looks_at_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("render looked at the disk")

    for name in ("open", "stat", "lstat", "listdir", "scandir", "readlink"):
        monkeypatch.setattr(os, name, refuse)
    site, model = pure_site("linux", HOME="/nowhere"), model_at(MODELS["linux"])
    endpoint = Endpoint("http://127.0.0.1:8080/v1", "m", 65_536)

    assert target.render(model, site, endpoint) == target.render(model, site, endpoint)


@pytest.mark.parametrize("target", WRITERS, ids=lambda target: target.name)
def test_deployed_is_static_twice_changes_nothing_and_undo_leaves_the_home_as_it_was(
    target: Target, place: Place
) -> None:
    (place.home / "notes.txt").write_text("years of work")
    before = snapshot(place.home)

    place.write(target)

    written = snapshot(place.home)
    assert written != before
    assert verify_written(place.render(target), ask=False).level == "static"
    assert not place.plan(target).is_needed
    place.write(target)
    assert snapshot(place.home) == written
    place.undo(target)
    assert snapshot(place.home) == before
    assert not place.directory(target).exists()
    assert Path(place.model.path).stat().st_nlink == 1


@pytest.mark.parametrize("target", CHANGERS, ids=lambda target: target.name)
def test_a_users_own_entries_comments_and_odd_spacing_survive_and_come_back_byte_for_byte(
    target: Target, place: Place
) -> None:
    for config in place.configs(target):
        path = Path(config.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(USERS[config.format])
        path.chmod(0o600)
    before = snapshot(place.home)

    place.write(target)

    for config in place.configs(target):
        path = Path(config.path)
        kept = [line for line in USERS[config.format].splitlines() if line.strip().startswith(("//", "#", ";"))]
        assert all(line in path.read_text().splitlines() for line in kept)
        assert "odd" in path.read_text()
        # Keys stand in such files: a new one is not open to more people than the old one.
        assert path.stat().st_mode & 0o777 == 0o600
    place.undo(target)
    assert snapshot(place.home) == before


@pytest.mark.parametrize("target", CHANGERS, ids=lambda target: target.name)
def test_a_configuration_that_does_not_parse_is_left_alone_and_nothing_else_is_written(
    target: Target, place: Place
) -> None:
    config = place.configs(target)[-1]
    path = Path(config.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(BROKEN[config.format])
    before = snapshot(place.home)

    with pytest.raises(FormatError, match="left as it is, nothing was written"):
        place.write(target)

    assert snapshot(place.home) == before


@pytest.mark.parametrize("target", WRITERS, ids=lambda target: target.name)
def test_what_the_user_changed_later_stays_when_ours_is_taken_back(target: Target, place: Place) -> None:
    place.write(target)
    theirs = {}
    for config in place.configs(target):
        path = Path(config.path)
        text = path.read_text()
        added = {
            "json": lambda text: text.replace("{", '{\n  // later\n  "later": "mine",', 1),
            "yaml": lambda text: text + "later: mine  # later\n",
            "ini": lambda text: text + "[later]\nmodel = /mine.gguf ; later\n",
        }[config.format](text)
        path.write_text(added)
        theirs[path] = config

    place.undo(target)

    for path in theirs:
        left = path.read_text()
        assert "later" in left and "mine" in left
        assert str(place.model.path) not in left and "8080" not in left


def test_a_value_that_the_user_had_is_there_again_after_undo_though_the_file_was_edited_since(place: Place) -> None:
    hermes = find_target("hermes")
    path = Path(place.configs(hermes)[0].path)
    path.parent.mkdir(parents=True)
    path.write_text("model:\n  provider: openrouter\n  default: mine/model\n")
    place.write(hermes)
    path.write_text(path.read_text() + "later: 1\n")

    place.undo(hermes)

    assert path.read_text() == "model:\n  provider: openrouter\n  default: mine/model\nlater: 1\n"


def test_two_models_in_one_configuration_are_taken_back_one_by_one(place: Place, tmp_path: Path) -> None:
    pi = find_target("pi")
    other = Place(
        place.home,
        model_at(tmp_path / "other.gguf", identifier="other"),
        Endpoint("http://127.0.0.1:8080/v1", "other", 8192),
    )
    before = snapshot(place.home)
    place.write(pi)
    other.write(pi)
    path = place.home / ".pi/agent/models.json"

    place.undo(pi)

    assert [entry["id"] for entry in json.loads(path.read_text())["providers"]["dfqs"]["models"]] == ["other"]
    other.undo(pi)
    assert snapshot(place.home) == before


def test_a_file_of_somebodys_under_our_name_is_not_replaced(place: Place) -> None:
    jan = find_target("jan")
    path = Path(next(iter(place.render(jan).written)))
    path.parent.mkdir(parents=True)
    path.write_text("model_path: theirs\n")

    with pytest.raises(UsageError, match="was not written by dfqs"):
        place.write(jan)
    assert path.read_text() == "model_path: theirs\n"


def test_a_model_of_somebodys_under_our_name_is_not_replaced(place: Place) -> None:
    studio = find_target("lm-studio")
    path = Path(next(iter(place.render(studio).written)))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"theirs")

    with pytest.raises(UsageError, match="is another file"):
        place.write(studio)
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("links", "way"),
    [(("hard link", "symlink", "copy"), "hard link"), (("symlink", "copy"), "symlink"), (("copy",), "copy")],
)
def test_a_model_is_placed_by_each_way_found_again_and_taken_back(
    links: tuple[object, ...], way: str, place: Place
) -> None:
    studio = find_target("lm-studio")
    before = snapshot(place.home)

    deployment = place.write(studio, ways=links)  # type: ignore[arg-type]

    assert [part.way for part in deployment.parts] == [way]
    path = Path(deployment.parts[0].path)
    assert path.read_bytes() == Path(place.model.path).read_bytes()
    assert not place.plan(studio, ways=links).is_needed  # type: ignore[arg-type]
    place.undo(studio)
    assert snapshot(place.home) == before


@pytest.mark.parametrize("way", ["hard link", "copy"])
def test_the_last_name_of_a_models_bytes_is_never_removed(way: str, place: Place) -> None:
    studio = find_target("lm-studio")
    deployment = place.write(studio, ways=(way,))  # type: ignore[arg-type]
    data = Path(place.model.path).read_bytes()
    Path(place.model.path).unlink()

    said = place.undo(studio)

    assert any("is gone and this is the model" in line for line in said)
    assert Path(deployment.parts[0].path).read_bytes() == data


def test_where_a_file_system_makes_no_links_the_model_is_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    studio = find_target("lm-studio")

    assert [part.way for part in place.write(studio).parts] == ["copy"]


def test_a_replaced_model_is_linked_anew(place: Place) -> None:
    studio = find_target("lm-studio")
    path = Path(place.write(studio).parts[0].path)
    source = Path(place.model.path)
    source.unlink()
    source.write_bytes(b"GGUF" + b"another" * 100)

    place.write(studio)

    assert path.samefile(source)
