"""The only way in which this service calls other hosts: no address that a stranger names may lead into our own network.

    URL ──check_url──▶ name ──resolved once──▶ addresses, every one checked ──▶ a connection to exactly such an address
        scheme, port,                          one that is not public: refused     TLS and Host still with the name
        no user, no tricks

What a name leads to is looked up once and used as found, so that a name which changes between the check and the call
(DNS rebinding) changes nothing. There are no proxies, no cookies, no connections kept, and every hop of a redirect is
a call of its own. httpcore2, on which httpx2 stands, lets us put our own network under its HTTP; httpx2's transport
does not, hence this floor.
"""

import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpcore2
import httpx2

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_URL_CHARACTERS = 2048
_MAX_ADDRESSES_TRIED = 4
# How long a canceled call may go on unheeded while it waits for the other side.
_LOOK_SECONDS = 0.25
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 64 * 1024
_LAST_PORT = 65535

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}\.?")
# `ipaddress` calls some special networks global: the relays of 6to4, those younger than its tables, and the assignments
# of the IETF, where clouds tell secrets: Oracle's metadata are at 192.0.0.192. Azure's platform has a public address.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(name)
    for name in ("192.88.99.0/24", "100.64.0.0/10", "3fff::/20", "192.0.0.0/24", "168.63.129.16/32")
)
# All of IPv6 that was ever given out to hosts; what lies outside is local, reserved or a way to write IPv4.
_IPV6_IN_USE = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Fault(StrEnum):
    """Why a call came to nothing. Only what is refused is not worth another try."""

    REFUSED = "refused"
    UNRESOLVED = "unresolved"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"


class TargetError(Exception):
    """One line for the user. It never says which address a name leads to, nor what the other side sent."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class TargetPolicy:
    ports: frozenset[int] = frozenset({443})
    allow_loopback: bool = False
    """This machine too, by http as well and at any port: for tests, and for receivers that run beside the service."""


@dataclass(frozen=True)
class TimeLimits:
    connect_seconds: float
    """For the name, and again for each address with its TLS handshake."""
    idle_seconds: float
    """Of silence."""
    total_seconds: float
    """From the first step to the last byte, over all redirects."""


class Answer:
    """Its body is read as it arrives: count it."""

    def __init__(self, response: httpcore2.Response) -> None:
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """As sent, without undoing any Content-Encoding."""
        return self._response.iter_stream()


Resolve = Callable[[str, int], Sequence[str]]


def system_addresses(host: str, port: int) -> list[str]:
    """All addresses that the system knows for a name. Also undoes spellings such as 0x7f.1 or 2130706433."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedHttp:
    """Makes calls. Holds no state between them and may be used by many threads."""

    def __init__(
        self, policy: TargetPolicy, *, resolve: Resolve = system_addresses, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """`resolve` and `ssl_context`: the system's, unless a test brings its own."""
        self._policy = policy
        self._resolve = resolve
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        limits: TimeLimits,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        redirects: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Answer]:
        """Make a call; raises `TargetError`, also from within while the body is read.

        `redirects`: how many may be followed. With 0 a redirect is an answer like any other.
        `check` is called several times a second and may end the call with an exception of its own.
        """
        deadline = time.monotonic() + limits.total_seconds
        for hop in range(redirects + 1):
            target = check_url(url, self._policy)
            network = _GuardedNetwork(self._policy, self._resolve, target, limits, deadline, check)
            with (
                _faults_named(),
                httpcore2.ConnectionPool(
                    ssl_context=self._ssl_context, network_backend=network, max_connections=1, retries=0, http2=False
                ) as pool,
                pool.stream(
                    method,
                    httpcore2.URL(
                        scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
                    ),
                    headers=[("User-Agent", "twostep-vsr"), ("Accept-Encoding", "identity"), *(headers or {}).items()],
                    content=content,
                    extensions={
                        "timeout": {
                            "connect": limits.connect_seconds,
                            "read": limits.idle_seconds,
                            "write": limits.idle_seconds,
                        }
                    },
                ) as response,
            ):
                answer = Answer(response)
                if not (redirects and answer.status in _REDIRECTS and "location" in answer.headers):
                    yield answer
                    return
                if hop == redirects:
                    raise TargetError(Fault.REFUSED, f"it redirects more than {redirects} times")
                try:
                    url = str(target.join(answer.headers["location"]))
                except httpx2.InvalidURL as error:
                    raise TargetError(Fault.REFUSED, "it redirects to what is no URL") from error


def check_url(url: str, policy: TargetPolicy) -> httpx2.URL:
    """The URL, taken apart once; raises `TargetError` for one that is refused however its name is resolved."""
    if len(url) > _MAX_URL_CHARACTERS:
        raise TargetError(Fault.REFUSED, f"the URL has more than {_MAX_URL_CHARACTERS} characters")
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise TargetError(Fault.REFUSED, "it is no URL") from error
    if target.scheme != "https" and not (policy.allow_loopback and target.scheme == "http"):
        raise TargetError(Fault.REFUSED, "only https:// URLs are accepted")
    # In the text too: to httpx2 an empty user is none.
    if target.userinfo or "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise TargetError(Fault.REFUSED, "a URL with a user or password is not accepted")
    if target.port is not None and not 0 < target.port <= _LAST_PORT:
        raise TargetError(Fault.REFUSED, f"there is no port {target.port}")
    if not policy.allow_loopback:
        _refuse_port(target, policy)
    host = target.raw_host.decode("ascii").lower()
    if (literal := _literal_address(host)) is not None:
        _refuse_address(literal, policy)
    elif not _HOST_NAME.fullmatch(host):
        raise TargetError(Fault.REFUSED, "it names no host")
    return target


def shown_url(url: str) -> str:
    """Scheme, host and path: without the query, which may hold a key to what lies there."""
    target = httpx2.URL(url)
    return str(target.copy_with(query=None, fragment=None))


def host_in_url(url: str) -> str:
    return httpx2.URL(url).host


def name_in_url(url: str) -> str:
    """The last part of its path, as a person would write it; it may be empty."""
    return httpx2.URL(url).path.rpartition("/")[2]


def is_public(address: _Address) -> bool:
    """Whether this is an address of the open internet, however it is written."""
    if isinstance(address, ipaddress.IPv4Address):
        return (
            address.is_global
            and not (address.is_multicast or address.is_reserved)
            and not any(address in network for network in _NOT_PUBLIC)
        )
    embedded = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if embedded is not None:
        return is_public(embedded)
    return (
        address in _IPV6_IN_USE
        and address.is_global
        and not (address.is_multicast or address.is_reserved or address.teredo)
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _literal_address(host: str) -> _Address | None:
    """The address that a host is written as, also in the old ways that C libraries still read (0x7f.1, 2130706433)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


def _is_loopback(address: _Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _refuse_address(address: _Address, policy: TargetPolicy) -> None:
    if not (is_public(address) or (policy.allow_loopback and _is_loopback(address))):
        raise TargetError(Fault.REFUSED, "it does not lead to a public address")


def _refuse_port(target: httpx2.URL, policy: TargetPolicy) -> None:
    port = target.port if target.port is not None else {"https": 443, "http": 80}[target.scheme]
    if port not in policy.ports:
        allowed = ", ".join(str(number) for number in sorted(policy.ports))
        raise TargetError(Fault.REFUSED, f"port {port} is not one of those allowed: {allowed}")


class _GuardedNetwork(httpcore2.NetworkBackend):
    """What httpcore2 connects through: one call, one name."""

    def __init__(
        self,
        policy: TargetPolicy,
        resolve: Resolve,
        target: httpx2.URL,
        limits: TimeLimits,
        deadline: float,
        check: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._resolve = resolve
        self._target = target
        self._limits = limits
        self._deadline = deadline
        self._check = check

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception = TargetError(Fault.UNRESOLVED, "its host has no address")
        for address in self._checked_addresses(host, port)[:_MAX_ADDRESSES_TRIED]:
            self._check()
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, timeout=self._time_left())
                return _GuardedStream(stream, self._limits, self._deadline, self._check)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        raise TargetError(Fault.REFUSED, "only hosts are called")

    def _checked_addresses(self, host: str, port: int) -> list[str]:
        """All of them must pass: a name that leads both outside and inside is nobody's honest mistake."""
        addresses = [ipaddress.ip_address(text) for text in self._look_up(host, port)]
        for address in addresses:
            _refuse_address(address, self._policy)
        if not all(_is_loopback(address) for address in addresses):
            # What is allowed for loopback alone.
            if self._target.scheme != "https":
                raise TargetError(Fault.REFUSED, "only https:// URLs are accepted")
            _refuse_port(self._target, self._policy)
        return [str(address) for address in addresses]

    def _look_up(self, host: str, port: int) -> Sequence[str]:
        """In a thread, as the system's resolver can neither be given a time limit nor be interrupted."""
        outcome: queue.SimpleQueue[Sequence[str] | OSError | UnicodeError] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                outcome.put(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                outcome.put(error)

        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        until = time.monotonic() + self._time_left()
        while True:
            self._check()
            try:
                found = outcome.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if time.monotonic() > until:
                    raise TargetError(Fault.TIMEOUT, "looking up its host took too long") from None
                continue
            if isinstance(found, OSError | UnicodeError):
                raise TargetError(Fault.UNRESOLVED, "its host cannot be found") from found
            return found

    def _time_left(self) -> float:
        left = min(self._limits.connect_seconds, self._deadline - time.monotonic())
        if left <= 0:
            raise httpcore2.ConnectTimeout
        return left


class _GuardedStream(httpcore2.NetworkStream):
    """Heeds the limits whatever is being read: headers that come byte by byte are a body that does not end."""

    def __init__(
        self, stream: httpcore2.NetworkStream, limits: TimeLimits, deadline: float, check: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._deadline = deadline
        self._check = check

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = min(time.monotonic() + self._limits.idle_seconds, self._deadline)
        while True:
            self._check()
            left = until - time.monotonic()
            if left <= 0:
                raise httpcore2.ReadTimeout
            try:
                return self._stream.read(max_bytes, min(left, _LOOK_SECONDS))
            except httpcore2.ReadTimeout:
                continue

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK_BYTES):
            self._check()
            left = min(self._limits.idle_seconds, self._deadline - time.monotonic())
            if left <= 0:
                raise httpcore2.WriteTimeout
            self._stream.write(buffer[start : start + _CHUNK_BYTES], left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = min(self._limits.connect_seconds, self._deadline - time.monotonic())
        try:
            secured = self._stream.start_tls(ssl_context, server_hostname, max(left, 0.001))
        except httpcore2.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise TargetError(Fault.TLS, "its certificate or its TLS is not accepted") from error
            raise
        return _GuardedStream(secured, self._limits, self._deadline, self._check)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


@contextmanager
def _faults_named() -> Iterator[None]:
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise TargetError(Fault.TIMEOUT, "it did not answer in time") from error
    except httpcore2.NetworkError as error:
        raise TargetError(Fault.UNREACHABLE, "it cannot be reached, or broke off") from error
    except httpcore2.ProtocolError as error:
        raise TargetError(Fault.PROTOCOL, "its answer is no HTTP, or incomplete") from error
