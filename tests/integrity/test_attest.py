"""What a signature of a model is worth: it holds for its bytes and its making, and for nothing else."""

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError, UsageError
from dfqs.gguf import string
from dfqs.gguf.values import KeyValue
from dfqs.integrity.statements import derivation_statement, model_statement, read_derivation, read_model_statement
from dfqs.model.making import CLASS_KEY, IMATRIX_KEY, RECIPE_KEY, SOURCE_KEY, VERSION_KEY
from fuzz import signatures
from gguf_builder import SMALL_KEYS, write_small

pytest.importorskip("model_signing")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dfqs.integrity.signing import StatementSigner, StatementVerifier

SOURCE, IMATRIX = "5" * 64, "6" * 64
RECIPE = json.dumps({"name": "mine", "types": {}, "exceptions": []})
KEYS: list[KeyValue] = [
    *SMALL_KEYS,
    string(CLASS_KEY, "mine"),
    string(RECIPE_KEY, RECIPE),
    string(SOURCE_KEY, SOURCE),
    string(IMATRIX_KEY, IMATRIX),
    string(VERSION_KEY, "0.1.0"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quantized model, and a pair of keys."""
    write_small(tmp_path / "m.gguf", keys=KEYS)
    monkeypatch.chdir(tmp_path)
    assert run(["attest", "--new-key", "."]) == 0
    return tmp_path


def attest(*words: str) -> int:
    return run(["attest", *words, "--key", "dfqs-signing.key"])


def verify(model: str, signature: str, *words: str) -> int:
    return run(["verify", model, "--attestation", signature, *(words or ("--public-key", "dfqs-signing.pub"))])


def codes(capsys: pytest.CaptureFixture[str], model: str, signature: str) -> list[str]:
    capsys.readouterr()
    verify(model, signature, "--public-key", "dfqs-signing.pub", "--json")
    found = json.loads(capsys.readouterr().out)
    return [finding["code"] for finding in found["findings"] if finding["severity"] == "error"]


def model_signing(*words: str) -> int:
    """The command line of the project that defines the format."""
    call = [sys.executable, "-m", "model_signing", *words]
    return subprocess.run(call, capture_output=True, timeout=120, check=False).returncode


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_signature_made_here_verifies_with_model_signing_and_one_flipped_byte_fails_both_ways(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ("verify", "key", "m.gguf", "--signature", "m.gguf.sig", "--public_key", "dfqs-signing.pub")

    assert attest("m.gguf") == 0
    assert verify("m.gguf", "m.gguf.sig") == 0
    assert model_signing(*theirs) == 0

    flip(folder / "m.gguf", -1)

    assert verify("m.gguf", "m.gguf.sig") == 1
    assert "signed" in codes(capsys, "m.gguf", "m.gguf.sig")
    assert model_signing(*theirs) != 0


def test_a_set_of_shards_is_signed_as_a_whole_and_a_byte_of_the_last_one_counts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["split", "m.gguf", "--max-tensors", "3", "-o", "s"]) == 0
    theirs = ("verify", "key", ".", "--signature", "s.gguf.sig", "--public_key", "dfqs-signing.pub")

    assert attest("s-00001-of-00002.gguf") == 0
    assert verify("s-00001-of-00002.gguf", "s.gguf.sig") == 0
    assert model_signing(*theirs, "--ignore_unsigned_files") == 0

    flip(folder / "s-00002-of-00002.gguf", -1)

    assert "signed" in codes(capsys, "s-00001-of-00002.gguf", "s.gguf.sig")
    assert model_signing(*theirs, "--ignore_unsigned_files") != 0


def test_what_is_signed_is_how_it_was_made_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attest("m.gguf", "--json") == 0
    capsys.readouterr()
    assert verify("m.gguf", "m.gguf.derivation.sigstore.json", "--public-key", "dfqs-signing.pub", "--json") == 0

    found = json.loads(capsys.readouterr().out)["attestation"]

    assert found["signed"] is True
    assert found["derivation"]["source_content_sha256"] == SOURCE
    assert found["derivation"]["imatrix_sha256"] == IMATRIX
    assert (found["derivation"]["class"], found["derivation"]["version"]) == ("mine", "0.1.0")
    statement = StatementVerifier(folder / "dfqs-signing.pub").verify(folder / "m.gguf.derivation.sigstore.json")
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"] == json.loads(RECIPE)


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        (("buildDefinition", "externalParameters", "class"), "better"),
        (("buildDefinition", "externalParameters", "recipe", "name"), "better"),
        (("buildDefinition", "resolvedDependencies", 0, "digest", "dfqsContentSha256"), "7" * 64),
        (("buildDefinition", "resolvedDependencies", 1, "digest", "sha256"), "7" * 64),
        (("runDetails", "builder", "version", "dfqs"), "9.9"),
        (("runDetails", "byproducts", 0, "digest", "sha256"), "7" * 64),
        (("runDetails", "byproducts", 0, "annotations", "content_sha256"), "7" * 64),
    ],
    ids=str,
)
def test_a_signed_lie_about_the_making_is_found(
    path: tuple[str | int, ...], lie: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attest("m.gguf") == 0
    place = folder / "m.gguf.derivation.sigstore.json"
    statement: Any = StatementVerifier(folder / "dfqs-signing.pub").verify(place)
    inner: Any = statement["predicate"]
    for step in path[:-1]:
        inner = inner[step]
    assert inner[path[-1]] != lie
    inner[path[-1]] = lie
    place.write_bytes(StatementSigner(folder / "dfqs-signing.key").sign(statement))

    assert codes(capsys, "m.gguf", "m.gguf.sig") == ["derivation"]


def test_the_statement_of_another_model_is_none_of_this_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small(folder / "o.gguf", keys=KEYS, seed="other")
    assert attest("m.gguf") == attest("o.gguf") == 0
    (folder / "o.gguf.derivation.sigstore.json").replace(folder / "m.gguf.derivation.sigstore.json")

    assert codes(capsys, "m.gguf", "m.gguf.sig") == ["derivation"]
    assert codes(capsys, "m.gguf", "o.gguf.sig") == ["signed"]


def test_another_key_does_not_confirm_and_a_changed_statement_has_no_signature(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attest("m.gguf") == 0
    (folder / "theirs").mkdir()
    assert run(["attest", "--new-key", "theirs"]) == 0
    assert verify("m.gguf", "m.gguf.sig", "--public-key", "theirs/dfqs-signing.pub") == 1

    bundle = json.loads((folder / "m.gguf.sig").read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["subject"][0]["name"] = "better"
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (folder / "m.gguf.sig").write_text(json.dumps(bundle))

    assert codes(capsys, "m.gguf", "m.gguf.sig") == ["signature"]


def test_what_others_signed_is_verified_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "repo").mkdir()
    (folder / "m.gguf").replace(folder / "repo" / "m.gguf")
    (folder / "repo" / "README.md").write_text("a card")
    sign = ("sign", "key", "repo", "--signature", "model.sig", "--private_key", "dfqs-signing.key")
    assert model_signing(*sign) == 0

    capsys.readouterr()
    assert verify("repo/m.gguf", "model.sig", "--public-key", "dfqs-signing.pub", "--json") == 0
    found = json.loads(capsys.readouterr().out)

    assert found["attestation"]["signed"] is True and found["attestation"]["derivation"] is None
    assert found["findings"][-1]["code"] == "signed-more"
    write_small(folder / "repo" / "n.gguf")
    assert codes(capsys, "repo/n.gguf", "model.sig") == ["unsigned"]


def test_a_certificate_is_held_against_the_root_that_the_caller_trusts(folder: Path) -> None:
    write_certificates(folder, "ours")
    write_certificates(folder, "strangers")
    words = ("--certificate", "ours-leaf.pem", "--certificate-chain", "ours-root.pem")

    assert run(["attest", "m.gguf", "--key", "ours.key", *words]) == 0

    assert verify("m.gguf", "m.gguf.sig", "--certificate-chain", "ours-root.pem") == 0
    assert verify("m.gguf", "m.gguf.sig", "--certificate-chain", "strangers-root.pem") == 1
    assert verify("m.gguf", "m.gguf.sig", "--public-key", "dfqs-signing.pub") == 1
    theirs = ("verify", "certificate", "m.gguf", "--signature", "m.gguf.sig", "--certificate_chain")
    assert model_signing(*theirs, "ours-root.pem") == 0
    assert model_signing(*theirs, "strangers-root.pem") != 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "not json",
        '{"verificationMaterial": {}, "dsseEnvelope": {}}',
        '{"verificationMaterial": {"publicKey": null}, "dsseEnvelope": null, "mediaType": "x"}',
        json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": {"publicKey": {"hint": "x"}},
                "dsseEnvelope": {"payload": "e30=", "payloadType": "x", "signatures": []},
            }
        ),
        "[" * 100_000,
        " " * (9 << 20),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_signature_ends_in_a_sentence(
    content: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x.sig").write_text(content)

    assert verify("m.gguf", "x.sig") == 3

    assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("change", ["predicate", "subject", "resources", "digest"])
def test_a_list_of_files_that_contradicts_itself_is_none(change: str) -> None:
    statement: Any = model_statement("m", [])
    if change == "digest":
        statement["subject"][0]["digest"]["sha256"] = "0" * 64
    elif change == "resources":
        statement["predicate"]["resources"] = [{"name": 7}]
    else:
        statement[change] = None

    with pytest.raises(FormatError):
        read_model_statement(statement)
    with pytest.raises(FormatError):
        read_derivation(statement)


def test_a_list_of_nothing_confirms_nothing() -> None:
    assert read_model_statement(model_statement("m", [])) is None


def test_hashes_that_are_not_computed_here_confirm_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statement: Any = model_statement("m", [])
    statement["predicate"]["serialization"]["method"] = "shards"
    (folder / "x.sig").write_bytes(StatementSigner(folder / "dfqs-signing.key").sign(statement))

    assert codes(capsys, "m.gguf", "x.sig") == ["signature"]


def test_what_is_damaged_or_is_not_what_its_manifest_says_is_not_signed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["manifest", "m.gguf"]) == 0
    flip(folder / "m.gguf", -1)
    assert attest("m.gguf") == 3
    assert "is not what m.gguf.manifest.json records" in capsys.readouterr().err

    (folder / "m.gguf").write_bytes((folder / "m.gguf").read_bytes()[:-8])
    assert attest("m.gguf") == 3
    assert not (folder / "m.gguf.sig").exists()


def test_a_model_that_says_nothing_of_its_making_has_its_bytes_signed_and_no_more(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small(folder / "plain.gguf")
    assert attest("plain.gguf") == 0
    assert "its bytes are signed, and nothing else" in capsys.readouterr().err
    assert not (folder / "plain.gguf.derivation.sigstore.json").exists()

    assert verify("plain.gguf", "plain.gguf.sig") == 0
    assert "how it was made is not signed" in capsys.readouterr().err


def test_keys_are_this_users_alone_and_never_replaced(folder: Path) -> None:
    before = (folder / "dfqs-signing.key").read_bytes()
    assert (folder / "dfqs-signing.key").stat().st_mode & 0o777 == 0o600

    assert run(["attest", "--new-key", "."]) == 2
    assert run(["attest", "--new-key", "nowhere"]) == 2

    assert (folder / "dfqs-signing.key").read_bytes() == before


def test_an_encrypted_key_wants_its_password_and_another_kind_of_key_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key(folder / "secret.key", ec.generate_private_key(ec.SECP384R1()), b"word")
    write_key(folder / "rsa.key", rsa.generate_private_key(65537, 2048))

    assert run(["attest", "m.gguf", "--key", "secret.key"]) == 2
    assert "DFQS_KEY_PASSWORD" in capsys.readouterr().err
    assert run(["attest", "m.gguf", "--key", "rsa.key"]) == 2
    assert run(["attest", "m.gguf", "--key", "m.gguf"]) == 2
    assert run(["attest", "m.gguf", "--key", "none"]) == 2
    monkeypatch.setenv("DFQS_KEY_PASSWORD", "word")
    assert run(["attest", "m.gguf", "--key", "secret.key"]) == 0


def test_without_the_extra_the_verb_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing._signing", None)
    monkeypatch.delitem(sys.modules, "dfqs.integrity.signing")

    assert attest("m.gguf") == 2
    assert "pip install 'dfqs[attest]'" in capsys.readouterr().err
    assert run(["verify", "m.gguf"]) == 0


def test_a_name_that_is_no_text_is_signed_all_the_same(folder: Path) -> None:
    name = os.fsdecode(b"m\xff\n.gguf")
    (folder / "m.gguf").rename(name)
    shards = os.fsdecode(b"s\xff")
    assert run(["split", name, "--max-tensors", "3", "-o", shards]) == 0

    for model, signature in ((name, f"{name}.sig"), (f"{shards}-00001-of-00002.gguf", f"{shards}.gguf.sig")):
        assert attest(model, "--json") == 0
        assert verify(model, signature) == 0


def test_whose_signature_is_trusted_must_be_said(folder: Path) -> None:
    assert attest("m.gguf") == 0
    for words in ([], ["--public-key", "dfqs-signing.pub", "--certificate-chain", "dfqs-signing.pub"]):
        assert run(["verify", "m.gguf", "--attestation", "m.gguf.sig", *words]) == 2
    assert run(["verify", "m.gguf", "--public-key", "dfqs-signing.pub"]) == 2
    with pytest.raises(UsageError):
        StatementVerifier()


def write_key(path: Path, key: Any, password: bytes | None = None) -> None:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def write_certificates(folder: Path, name: str) -> None:
    """A root, and a certificate below it that may sign."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} root")])
    leaf_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    for subject, public, is_root in ((root_name, root_key.public_key(), True), (leaf_name, key.public_key(), False)):
        usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(root_key, hashes.SHA256())
        )
        part = "root" if is_root else "leaf"
        (folder / f"{name}-{part}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_key(folder / f"{name}.key", key)


def test_what_was_signed_once_is_read_for_ever() -> None:
    said = read_derivation(signatures.verifier().verify(signatures.SIGNED))

    assert derivation_statement(said) == signatures.derivation()
