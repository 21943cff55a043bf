"""One default SSLContext per process and kind, and none where httpx makes none.

Contexts are counted where they load their certificates, which is what costs 20 ms; no timing.

Subject: `_tls.py`.
"""

import os
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
import trustme
from wording import HTTPCORE

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient, _tls
from httpx_production._tls import default_ssl_context

CLASSES = (ProductionHTTPClient, AsyncProductionHTTPClient)
both = pytest.mark.parametrize("kind", CLASSES)
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No context from another test, and an environment without variables that matter."""
    for name in (*CERTIFICATES, *PROXIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    _tls._context.cache_clear()
    yield
    _tls._context.cache_clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How often a verifying context was made, and from what."""
    made: list[dict[str, Any]] = []
    original: Callable[..., None] = ssl.SSLContext.load_verify_locations

    def load(
        self: ssl.SSLContext, cafile: Any = None, capath: Any = None, cadata: Any = None
    ) -> None:
        sources = {"cafile": cafile, "capath": capath, "cadata": cadata}
        made.append({name: source for name, source in sources.items() if source})
        original(self, **sources)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load)
    return made


def set_default(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Let this be what httpx takes without SSL_CERT_FILE: certifi's, or the system's."""
    paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(bundle), openssl_capath="")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(certifi, "where", lambda: str(bundle))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A certificate authority of our own, as a file."""
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def context(**options: Any) -> ssl.SSLContext:
    return default_ssl_context(**{"http1": True, "http2": True, "trust_env": True, **options})


def authorities(one: ssl.SSLContext) -> int:
    return one.cert_store_stats()["x509_ca"]


# --- one per kind ---------------------------------------------------------------------------------


def test_the_context_is_what_httpx_would_make(made: list[dict[str, Any]]) -> None:
    """Verifying, with the authorities that httpx takes: certifi's, or the system's."""
    ours, theirs = context(), httpx.create_ssl_context()
    assert made == [made[0]] * 2
    assert (ours.verify_mode, ours.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert ours.options == theirs.options
    assert authorities(ours) == authorities(theirs) > 50


def test_the_same_kind_shares_one_context(made: list[dict[str, Any]]) -> None:
    """However often it is asked for."""
    assert len({id(context()) for _ in range(20)}) == len(made) == 1


def test_different_kinds_never_share_one(made: list[dict[str, Any]]) -> None:
    """httpcore writes the ALPN list into it at each connect: handshakes would mix."""
    kinds = [
        {"http1": http1, "http2": http2, "trust_env": trust_env}
        for http1 in (True, False)
        for http2 in (True, False)
        for trust_env in (True, False)
    ]
    contexts = [context(**kind) for kind in kinds]
    assert len(set(map(id, contexts))) == len(made) == 8
    assert [context(**kind) for kind in kinds] == contexts


def test_threads_get_a_working_context() -> None:
    """Clients made at once in many threads end up with one or few, never with a broken one."""
    start = threading.Barrier(8)

    def get(_: int) -> ssl.SSLContext:
        start.wait()
        return context()

    with ThreadPoolExecutor(8) as pool:
        contexts = list(pool.map(get, range(8)))
    assert {authorities(one) for one in contexts} == {authorities(context())}


# --- the environment ------------------------------------------------------------------------------


def test_ssl_cert_file_is_seen(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """Set, it changes the context; taken back, the first one serves again."""
    before = context()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    own = context()
    assert own is context()
    assert authorities(own) == 1
    monkeypatch.delenv("SSL_CERT_FILE")
    assert context() is before
    assert made[1:] == [{"cafile": str(bundle)}]


def test_ssl_cert_dir_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """The same for a directory of certificates."""
    before = context()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert context() is context() is not before
    assert made[1:] == [{"capath": str(tmp_path)}]


def test_ssl_key_log_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants to look into the traffic gets a context that writes its keys."""
    before = context()
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    logging, theirs = context(), httpx.create_ssl_context()
    assert logging is not before
    assert before.keylog_filename is None
    assert logging.keylog_filename == theirs.keylog_filename  # None with httpx2 on Linux
    logging.keylog_filename = theirs.keylog_filename = None  # closes the file


def test_empty_variables_are_none(
    monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """As in httpx, `SSL_CERT_FILE=` means nothing."""
    before = context()
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.setenv("SSL_CERT_DIR", "")
    assert context() is before
    assert len(made) == 1


def test_the_environment_is_not_asked_without_trust_env(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """`trust_env=False` means httpx's own authorities, whatever the variables say."""
    before = context(trust_env=False)
    httpx.create_ssl_context()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(bundle.parent))
    assert context(trust_env=False) is before
    assert made == [made[0]] * 2


def test_a_missing_ssl_cert_file_fails_as_in_httpx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """In the constructor, and not for ever: once the file is there, all is well."""
    path = tmp_path / "missing.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    for make in (httpx.Client, *CLASSES, *CLASSES):
        with pytest.raises(FileNotFoundError):
            make()
    path.write_bytes(bundle.read_bytes())
    assert authorities(context()) == 1


def touch(path: Path) -> None:
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))


@pytest.mark.parametrize("source", ["default", "SSL_CERT_FILE"])
def test_a_renewed_bundle_is_seen(
    source: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """A process that runs for months sees what `pip install -U certifi` or an admin wrote."""
    if source == "default":
        set_default(monkeypatch, bundle)
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    before = context()
    assert context() is before
    with bundle.open("ab") as file:
        file.write(trustme.CA().cert_pem.bytes())
    touch(bundle)
    assert context() is not before
    assert (authorities(before), authorities(context())) == (1, 2)
    assert len(made) == 2


def test_every_store_that_may_be_the_default_is_watched() -> None:
    """httpx2 has a list, of which it takes the first file that is there; httpx takes certifi's."""
    known: Any = sys.modules.get(f"{HTTPCORE}._ssl")
    listed = getattr(known, "CA_FILE_CANDIDATES", ["/etc/ssl/cert.pem", "/etc/pki/tls/cert.pem"])
    assert {certifi.where(), *listed} <= set(_tls._stores())


def test_another_default_is_seen(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`certifi.where` is what distributions and corporate patches replace."""
    before = context()
    set_default(monkeypatch, bundle)
    assert authorities(context()) == 1
    assert context() is not before


def test_old_contexts_are_given_up(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """A bundle that is rewritten every minute doesn't fill the memory."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    for _ in range(40):
        touch(bundle)
        context()
    assert len(made) == 40
    assert _tls._context.cache_info().currsize <= 16


# --- the clients ----------------------------------------------------------------------------------


def used(client: Any) -> list[ssl.SSLContext]:
    """The contexts of a client's pools: its own transport's, then its mounts'."""
    transports = [client._transport, *client._mounts.values()]
    return [transport._pool._ssl_context for transport in transports if transport is not None]


@both
def test_the_nth_client_makes_no_context(kind: Any, made: list[dict[str, Any]]) -> None:
    """Nor the first one a second."""
    clients = [kind() for _ in range(10)]
    assert len(made) == 1
    assert len({id(one) for client in clients for one in used(client)}) == 1


def test_both_classes_share_the_context(made: list[dict[str, Any]]) -> None:
    """A context belongs to no event loop."""
    contexts = [used(kind())[0] for kind in CLASSES]
    assert contexts[0] is contexts[1] is context()
    assert len(made) == 1


@both
def test_clients_that_differ_in_alpn_do_not_share(kind: Any, made: list[dict[str, Any]]) -> None:
    """One offers h2, one http/1.1: never by the same context."""
    clients = [kind(), kind(http2=False), kind(http1=False), kind(trust_env=False)]
    assert len({id(used(client)[0]) for client in clients}) == len(made) == 4


@both
def test_proxies_share_the_context_too(
    kind: Any, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, Any]]
) -> None:
    """httpx makes one more for each variable: 58 ms a client."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    contexts = [one for _ in range(3) for one in used(kind())]
    contexts += used(kind(proxy="http://127.0.0.1:9"))
    assert len(contexts) >= 9
    assert len(set(map(id, contexts))) == len(made) == 1


@both
def test_no_context_is_made_beside_a_transport_of_the_caller_s(
    kind: Any, made: list[dict[str, Any]]
) -> None:
    """Nobody would use it: MockTransport, ASGI, aiohttp."""
    kind(transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    assert made == []


@both
def test_a_proxy_beside_a_transport_needs_one(kind: Any, made: list[dict[str, Any]]) -> None:
    """httpx makes a transport of its own for the proxy then."""
    mock = httpx.MockTransport(lambda request: httpx.Response(200))
    client = kind(transport=mock, proxy="http://127.0.0.1:9")
    (mounted,) = client._mounts.values()
    assert mounted._pool._ssl_context is context()
    assert len(made) == 1


@both
def test_verify_false_stays_what_it_is(kind: Any, made: list[dict[str, Any]]) -> None:
    """Each such client has a context of its own, and the shared one keeps verifying."""
    open_ = [used(kind(verify=False))[0] for _ in range(2)]
    assert {one.verify_mode for one in open_} == {ssl.CERT_NONE}
    assert open_[0] is not open_[1]
    assert made == []
    assert used(kind())[0].verify_mode == ssl.CERT_REQUIRED


@both
def test_a_context_of_the_caller_s_stays_what_it_is(kind: Any) -> None:
    """The very object, untouched."""
    own = ssl.create_default_context()
    before = own.cert_store_stats(), own.verify_mode, own.options, own.verify_flags
    assert used(kind(verify=own)) == [own]
    assert (own.cert_store_stats(), own.verify_mode, own.options, own.verify_flags) == before


@both
@pytest.mark.filterwarnings("ignore:`verify=<str>` is deprecated:DeprecationWarning")
def test_a_bundle_of_the_caller_s_is_its_own_context(
    kind: Any, bundle: Path, made: list[dict[str, Any]]
) -> None:
    """`verify="ca.pem"` as in httpx."""
    (one,) = used(kind(verify=str(bundle)))
    assert made == [{"cafile": str(bundle)}]
    assert authorities(one) == 1


@both
@pytest.mark.filterwarnings("ignore:`cert=...` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("trust_env", [True, False])
def test_a_client_certificate_never_reaches_the_shared_context(
    kind: Any, trust_env: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cert=` is loaded into a context of its own, else every client would show it."""
    loaded: list[ssl.SSLContext] = []
    original: Callable[..., None] = ssl.SSLContext.load_cert_chain

    def load(self: ssl.SSLContext, *args: Any, **options: Any) -> None:
        loaded.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    pem = tmp_path / "client.pem"
    trustme.CA().issue_cert("me@example.com").private_key_and_cert_chain_pem.write_to_path(pem)
    shared = used(kind(trust_env=trust_env))[0]
    own = used(kind(cert=str(pem), trust_env=trust_env))[0]
    assert loaded == [own]
    assert own is not shared is used(kind(trust_env=trust_env))[0]
