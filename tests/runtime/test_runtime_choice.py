"""Another llama.cpp than the wheel's: fetched or one's own, held against its pins, and never loaded when it changed."""

import dataclasses
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError, IntegrityError, NetworkError, UsageError
from dfqs.runtime import Worker, builds, choice, choosing, features, install
from dfqs.runtime.builds import NODE_LLAMA_CPP, V0_5_0, Package
from runtime_functions import WORKER_ENV

FILES = {"libllama.so": b"llama" * 1000, "libggml-cpu-x64.so": b"ggml" * 999}


def archive_of(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def package_of(archive: bytes) -> Package:
    """A package of `FILES`, pinned to `archive`."""
    return dataclasses.replace(
        NODE_LLAMA_CPP,
        name="small",
        archive="small.tgz",
        archive_bytes=len(archive),
        archive_sha512=hashlib.sha512(archive).hexdigest(),
        folder="package/bins",
        library="libllama.so",
        files=tuple((name, hashlib.sha256(data).hexdigest()) for name, data in FILES.items()),
        licences=(("package/LICENSE", "LICENSE"),),
    )


GOOD = {f"package/bins/{name}": data for name, data in FILES.items()} | {"package/LICENSE": b"MIT"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DFQS_LLAMA_LIBRARY", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def registry() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server of archives, by path."""
    served: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", served
    server.shutdown()
    server.server_close()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith(".")}


class TestInstalling:
    def test_only_the_known_files_leave_the_archive_and_licences_come_along(
        self, registry: tuple[str, dict[str, bytes]], own_cache: Path
    ) -> None:
        url, served = registry
        served["/small.tgz"] = archive_of(GOOD | {"package/bins/addon.node": b"x", "../../evil": b"x"})
        package = package_of(served["/small.tgz"])

        path = install.install_package(package, registry=url)

        assert path.read_bytes() == FILES["libllama.so"]
        assert tree(own_cache / "runtimes") == {"small", "small/LICENSE", *(f"small/{name}" for name in FILES)}
        assert not (own_cache.parent / "evil").exists()
        served.clear()
        # Nothing is fetched again.
        assert install.install_package(package, registry=url) == path

    @pytest.mark.parametrize(
        ("members", "links"),
        [
            (GOOD | {"package/bins/libllama.so": b"other"}, {}),
            ({name: data for name, data in GOOD.items() if "ggml" not in name}, {}),
            ({"package/LICENSE": b""}, {f"package/bins/{name}": "/etc/passwd" for name in FILES}),
        ],
        ids=["another-library", "one-missing", "links"],
    )
    def test_an_archive_with_other_contents_installs_nothing_though_its_own_hash_is_pinned(
        self, members: dict[str, bytes], links: dict[str, str], tmp_path: Path, own_cache: Path
    ) -> None:
        archive = tmp_path / "a.tgz"
        archive.write_bytes(archive_of(members, links))

        with pytest.raises(IntegrityError):
            install.install_package(package_of(archive.read_bytes()), archive)

        assert tree(own_cache / "runtimes") == set()

    @pytest.mark.parametrize("damage", ["flipped", "short", "long"])
    def test_an_archive_that_is_not_the_pinned_one_is_not_opened(
        self, damage: str, registry: tuple[str, dict[str, bytes]], own_cache: Path
    ) -> None:
        url, served = registry
        good = archive_of(GOOD)
        flipped = bytes([good[0] ^ 1]) + good[1:]
        served["/small.tgz"] = {"flipped": flipped, "short": good[:-1], "long": good + b"x"}[damage]

        with pytest.raises((IntegrityError, NetworkError)):
            install.install_package(package_of(good), registry=url)

        assert tree(own_cache / "runtimes") == set()

    def test_something_that_is_no_archive_is_an_error_of_ours(self, tmp_path: Path) -> None:
        (tmp_path / "a.tgz").write_bytes(b"\x1f\x8bnonsense")

        with pytest.raises(FormatError, match="cannot be read"):
            install.install_package(package_of(b"\x1f\x8bnonsense"), tmp_path / "a.tgz")

    def test_a_registry_that_is_not_there_is_said_with_another_way(self) -> None:
        with pytest.raises(NetworkError, match="--archive"):
            install.install_package(package_of(b""), registry="http://127.0.0.1:9")

    @pytest.mark.parametrize(
        ("system", "machine", "libc", "reason"),
        [
            ("Darwin", "arm64", ("", ""), "Linux on x86_64"),
            ("Linux", "aarch64", ("glibc", "2.36"), "Linux on aarch64"),
            ("Linux", "x86_64", ("glibc", "2.31"), r"needs glibc 2\.34, and this system has 2\.31"),
            ("Linux", "x86_64", ("", ""), "another C library"),
        ],
    )
    def test_a_machine_that_it_cannot_run_on_is_told_before_anything_is_fetched(
        self, system: str, machine: str, libc: tuple[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.system", lambda: system)
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr("platform.libc_ver", lambda: libc)

        with pytest.raises(UsageError, match=reason):
            install.install_package(NODE_LLAMA_CPP, registry="http://127.0.0.1:9")


class TestChoosing:
    def test_a_chosen_library_that_changed_or_went_is_refused_and_not_loaded(self, tmp_path: Path) -> None:
        library = tmp_path / "libllama.so"
        library.write_bytes(b"a build")
        (tmp_path / "libggml-base.so").write_bytes(b"its base")
        choosing.write_choice(choosing.choose_own(library, "llama.cpp b11549"))
        assert choice.find_library() == library

        (tmp_path / "libggml-base.so").write_bytes(b"another!")
        with pytest.raises(IntegrityError, match=r"libggml-base\.so of the chosen runtime .* is changed"):
            choice.find_library()
        (tmp_path / "libggml-base.so").unlink()
        with pytest.raises(IntegrityError, match="is gone"):
            choice.find_library()

        choosing.write_choice(None)
        assert "xllamacpp" in choice.find_library().name

    def test_the_environment_goes_before_what_was_chosen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "libllama.so").write_bytes(b"a build")
        choosing.write_choice(choosing.choose_own(tmp_path / "libllama.so", "llama.cpp b11549"))
        assert choice.runtime_name().startswith("own build, sha256 ")

        monkeypatch.setenv("DFQS_LLAMA_LIBRARY", "wheel")

        assert choice.runtime_name() == "xllamacpp 2026.10.11549"
        assert "xllamacpp" in choice.find_library().name

    def test_a_library_that_is_no_llama_is_not_written_down(
        self, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "libllama.so").write_bytes(b"not a library")

        assert run(["runtime", "use", str(tmp_path)]) == 3
        assert run(["runtime", "install", "--library", str(tmp_path / "libllama.so")]) == 3

        assert "could not be loaded" in capsys.readouterr().err
        assert choice.read_choice() is None

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["use", "nothing-here"], "names no file"),
            (["use", NODE_LLAMA_CPP.name], "is not installed; run 'dfqs runtime install"),
            (["install", "other"], "no package of the name 'other'"),
            (["install", "--library", "x", "--no-use"], "goes with neither"),
        ],
    )
    def test_what_cannot_be_chosen_is_said_with_what_can(
        self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["runtime", *words]) == 2
        assert said in capsys.readouterr().err

    def test_the_wheel_is_shown_with_what_it_leaves_unused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["runtime", "--json"]) == 0

        shown = json.loads(capsys.readouterr().out)
        assert (shown["schema"], shown["why"], shown["release"]) == ("dfqs.runtime/1", "default", "llama.cpp b11549")
        assert "avx2" in shown["features"]
        assert not set(shown["features"]) & set(shown["unused"])


def test_features_are_read_with_their_numbers() -> None:
    said = "CPU : SSE3 = 1 | AVX = 1 | AVX512 = 0 | REPACK = 1 | "

    assert features.parse_features(said) == ("SSE3", "AVX", "REPACK")


def test_builds_are_told_apart_by_both_of_their_versions() -> None:
    assert builds.known_build(b"0.5.0-dev", b"0.25.1") is V0_5_0
    assert builds.known_build(b"0.5.0-dev", b"0.26.0") is None


@pytest.mark.slow
def test_the_package_of_the_registry_installs_loads_and_answers(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runtime", "install", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["why"], shown["release"]) == ("chosen", "llama.cpp v0.5.0")

    assert run(["run", str(smollm2_gguf), "-p", "The capital of France is", "-n", "8", "--temp", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["settings"]["runtime"] == NODE_LLAMA_CPP.name
    assert "Paris" in answer["text"]
    with Worker(env=WORKER_ENV) as worker:
        assert worker.call(features.describe_runtime).release == "llama.cpp v0.5.0"
