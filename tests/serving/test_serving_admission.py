"""Who may ask a model on this machine: not a stranger's page in the user's browser."""

import pytest

from dfqs.errors import UsageError
from dfqs.serving.admission import host_name, make_admission
from dfqs.serving.http_head import HttpRefusal, RequestHead, parse_request_head


def request(host: str = "localhost", **headers: str) -> RequestHead:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in {"host": host, **headers}.items()]
    method = "POST" if headers else "GET"
    return parse_request_head(f"{method} / HTTP/1.1\r\n{''.join(lines)}\r\n".encode())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:1", "127.8.9.1", "[::1]:80", "[::1]"]
)
def test_names_of_this_machine_are_its_own(host: str) -> None:
    make_admission(False, (), ()).check(request(host))


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example"),
        *("192.0.2.7", "", "localhost:80:80", "localhost:x", "[::1", "[evil]", "2130706433", "0.0.0.0"),
        *("local host", "localhost/x"),
    ],
)
def test_a_name_that_a_stranger_made_for_this_machine_is_refused(host: str) -> None:
    with pytest.raises(HttpRefusal, match="is not a name of this server") as refused:
        make_admission(False, (), ()).check(request(host))
    assert refused.value.status == 403


def test_beyond_this_machine_numbers_are_names_and_words_are_listed() -> None:
    rules = make_admission(True, ("Models.Example.lan",), ())
    for host in ("192.0.2.7:8080", "[2001:db8::1]:8080", "models.example.lan:8080", "localhost"):
        rules.check(request(host))
    with pytest.raises(HttpRefusal):
        rules.check(request("evil.example"))


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:80", True),
        ("https://evil.example", False),
        ("https://localhost.evil.example", False),
        ("http://localhost@evil.example", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("chrome-extension://abc", False),
        ("http://localhost/path", False),
        ("http://[::1", False),
    ],
)
def test_only_pages_of_this_machine_may_use_the_model(origin: str, let_in: bool) -> None:
    posted = request(origin=origin, content_type="application/json", content_length="2")
    rules = make_admission(False, (), ())
    if let_in:
        rules.check(posted)
        return
    with pytest.raises(HttpRefusal, match="may not use this server") as refused:
        rules.check(posted)
    assert refused.value.status == 403


def test_a_page_of_the_server_itself_and_a_listed_one_may() -> None:
    rules = make_admission(True, (), ("https://Tools.example.lan",))
    rules.check(request("192.0.2.7:8080", origin="http://192.0.2.7:8080"))
    rules.check(request("192.0.2.7:8080", origin="https://tools.example.lan"))
    with pytest.raises(HttpRefusal):
        rules.check(request("192.0.2.7:8080", origin="http://192.0.2.7:9090"))


def test_a_page_without_an_origin_is_known_by_what_the_browser_says_of_it() -> None:
    with pytest.raises(HttpRefusal, match="a page of another site"):
        make_admission(False, (), ()).check(
            request(sec_fetch_site="cross-site", content_type="application/json", content_length="2")
        )


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/plain; application/json"]
)
def test_a_body_that_any_page_can_send_without_asking_is_refused(kind: str) -> None:
    with pytest.raises(HttpRefusal, match="the body is JSON") as refused:
        make_admission(False, (), ()).check(request(content_type=kind, content_length="2"))
    assert refused.value.status == 415


@pytest.mark.parametrize(("hosts", "origins"), [(["http://x"], []), ([], ["evil.example"]), ([], ["ftp://x"])])
def test_what_is_no_name_or_page_is_not_taken_for_one(hosts: list[str], origins: list[str]) -> None:
    with pytest.raises(UsageError, match="write it like"):
        make_admission(True, hosts, origins)


def test_a_name_is_read_as_one() -> None:
    assert [host_name(x) for x in ("A.b:1", "[::1]:2", "a b", "a:b:c")] == ["a.b", "::1", None, None]
