"""Asks the web with care: where requests may go, which of them carry a token, and how failures are said."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from textual_inversion.errors import InstallError
from textual_inversion.install.addresses import CIVITAI_HOSTS, Sites, host_of, origin_of, shown

_TIMEOUT = 30.0  # seconds without a byte
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 500, 502, 503, 504)
_TRIES = 3
_LONGEST_WAIT = 60.0  # seconds that a server's wish to wait is followed
_MOST_SAID = 200  # letters of a server's own words in a message
_SLICE = 0.5  # seconds between two looks at `should_stop` while waiting
_LONGEST_SMALL = 120.0  # seconds that a small answer may take
_MOST_JSON = 32 * 2**20
_MOST_WORDS = 2**16
_TOKENS = {"civitai": ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_KEY"), "hub": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
_SITE_NAMES = {"civitai": "Civitai", "hub": "Hugging Face"}


_Place = tuple[str, "int | None"]  # host and port


def tokens_from_environment() -> dict[str, str]:
    """Site (`civitai`, `hub`) -> API token, of the variables that its own tools read.

    Logins that other programs keep in files are not read, because nobody gave them to this one.
    """
    found = {site: next((token for name in names if (token := os.environ.get(name, "").strip())), "") for site, names in _TOKENS.items()}
    return {site: token for site, token in found.items() if token}


class _Readable(Protocol):
    """The body of an answer."""

    def read1(self, n: int = -1, /) -> bytes:
        """The next bytes, at most n."""


@dataclass(frozen=True)
class Answer:
    """A server's answer, open for reading.

    Attributes:
        address: where it came from after all redirects; it may hold a signature, so it is not for messages.
        status: 200, 206 or 416.
        headers: its headers, whose names are found in any spelling.
    """

    address: str
    status: int
    headers: Mapping[str, str]
    body: _Readable = field(repr=False)

    def read(self, most: int) -> bytes:
        """The next bytes, at most `most`; none at the end.

        Raises:
            OSError, http.client.HTTPException: the connection was cut.
        """
        return self.body.read1(most)

    @property
    def is_page(self) -> bool:
        """Whether the server calls it a web page."""
        return self.headers.get("Content-Type", "").split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


@dataclass
class Web:
    """Sends requests.

    Attributes:
        sites: the sites that tokens belong to.
        tokens: site (`civitai`, `hub`) -> API token. A token goes to its own site only, and never along a redirect to another server.
        trusts_typed: whether an address that the user typed may lie on this computer or in its own network. Others never may.
        wait: waits for so many seconds.
        timeout: seconds without a byte.
        should_stop: ends waits and small answers.
    """

    sites: Sites = field(default_factory=Sites)
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    trusts_typed: bool = True
    wait: Callable[[float], None] = time.sleep
    timeout: float = _TIMEOUT
    should_stop: Callable[[], bool] = lambda: False
    _secrets: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self._secrets.update(self.tokens.values())

    @contextmanager
    def open(self, address: str, *, typed: bool = False, token: str = "", headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """Ask for what lies at `address`, following redirects.

        Args:
            typed: the user gave this address.
            token: takes the place of the site's token, if the address is that of a site.

        Raises:
            InstallError: the address may not be asked, the server cannot be reached or refuses, or there is nothing.
        """
        own_places = {_place_of(self.sites.civitai), _place_of(self.sites.hub)}
        trusted = own_places | ({_place_of(address)} if typed and self.trusts_typed else set())
        site = self.site_of(address)
        token = (token or self.tokens.get(site, "")) if site else ""
        self._secrets |= {token} - {""}
        first, now = origin_of(address), address
        for _ in range(_MOST_REDIRECTS):
            _check_hop(now, trusted)
            with_token = (
                {"Authorization": f"Bearer {token}"} if token and origin_of(now) == first and _is_private_line(now, own_places) else {}
            )
            with closing(self._send(now, {**(headers or {}), **with_token}, trusted, site)) as raw:
                if raw.status not in _REDIRECTS:
                    yield Answer(now, raw.status, raw.headers, raw)
                    return
                now = _next_address(now, raw.headers.get("Location", ""))
                if urlsplit(now).path.lower().rstrip("/").endswith("/login"):
                    raise InstallError(f"{shown(address)} is for users who have logged in{self._about_token(site)}.")
                if origin_of(now) != first:
                    token = ""  # for the rest of the way, also where that leads back
        raise InstallError(f"{shown(address)} leads from one address to the next without an end.")

    def json(self, address: str, *, token: str = "") -> Any:
        """What the server answers, as JSON; raises `InstallError` as `open`, and where it is none."""
        data = self.small(address, _MOST_JSON, token=token, headers={"Accept": "application/json"})
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InstallError(f"{shown(address)} gave no answer that can be read; try again later.") from error

    def small(self, address: str, most: int, *, token: str = "", headers: Mapping[str, str] | None = None) -> bytes:
        """A whole answer of at most `most` bytes; raises `InstallError` as `open`, and where it is larger or cut."""
        data, end = bytearray(), time.monotonic() + _LONGEST_SMALL
        with self.open(address, token=token, headers=headers) as answer:
            try:
                while block := answer.read(_MOST_WORDS):
                    data += block
                    self._check_stop()
                    if time.monotonic() > end:
                        raise InstallError(f"{shown(address)} took longer than {_LONGEST_SMALL:.0f} seconds; try again later.")
                    if len(data) > most:
                        raise InstallError(f"{shown(address)} gave more than {most >> 20} MB.")
            except (OSError, http.client.HTTPException) as error:
                raise InstallError(f"{shown(address)} could not be read to its end ({reason_of(error)}); try again.") from error
        return bytes(data)

    def pause(self, seconds: float) -> None:
        """Wait; raises `InstallError` when the user stops it."""
        while seconds > 0:
            self._check_stop()
            self.wait(min(seconds, _SLICE))
            seconds -= _SLICE
        self._check_stop()

    def _check_stop(self) -> None:
        if self.should_stop():
            raise InstallError("The installation was stopped; start it again to go on.")

    def _send(self, address: str, headers: Mapping[str, str], trusted: Collection[_Place], site: str) -> Any:
        """The answer to one request; servers that are busy are asked again."""
        opener = _opener(trusted)
        for attempt in range(1, _TRIES + 1):
            request = urllib.request.Request(address, headers={"User-Agent": "textual-inversion", "Accept-Encoding": "identity", **headers})
            try:
                return opener.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                if error.code in _REDIRECTS or error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return error
                with closing(error):
                    pause = _pause(error, attempt)
                    if pause is None or attempt == _TRIES:
                        raise InstallError(self._refusal(address, error, site)) from None  # its request has the token
                self.pause(pause)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise InstallError(f"{shown(address)} cannot be reached: {self._hidden(reason_of(error))}.") from None
        raise AssertionError("the last try returns or raises")

    def _refusal(self, address: str, error: urllib.error.HTTPError, site: str) -> str:
        """The sentence for an answer that is an error."""
        said = self._hidden(_own_words(error))
        quoted = f" (it says: {said})" if said else ""
        if error.code in (401, 403):
            return f"{shown(address)} needs a login or permission{quoted}{self._about_token(site)}."
        if error.code in (404, 410):
            hidden = f", or it is not public{self._about_token(site)}" if site else ""
            return f"There is nothing at {shown(address)}{hidden}."
        if error.code in (429, 503):
            seconds = _wish_to_wait(error)
            when = "later" if seconds is None else f"in {seconds:.0f} seconds" if seconds < 120 else f"in {seconds / 60:.0f} minutes"
            return f"{host_of(address)} takes no more requests now; try again {when}."
        return f"{shown(address)} cannot be fetched: the server answered {error.code}{quoted}."

    def _about_token(self, site: str) -> str:
        if not site:
            return "; fetch it with your browser, and give the file"
        name = _TOKENS[site][0]
        if self.tokens.get(site):
            return f"; the API token of {_SITE_NAMES[site]} that is set ({name}) does not open it"
        return f"; set an API token of {_SITE_NAMES[site]} ({name})"

    def site_of(self, address: str) -> str:
        """The site that an address belongs to; empty for others."""
        if self.sites.civitai == Sites.civitai and origin_of(address)[0] == "https" and host_of(address) in CIVITAI_HOSTS:
            return "civitai"
        for site, base in (("civitai", self.sites.civitai), ("hub", self.sites.hub)):
            if origin_of(address) == origin_of(base) and urlsplit(address).path.startswith(urlsplit(base).path):
                return site
        return ""

    def _hidden(self, text: str) -> str:
        """`text` without a token that a server repeats."""
        for token in self._secrets:
            text = text.replace(token, "…")
        return text


def reason_of(error: Exception) -> str:
    """Why a connection failed, without a full stop."""
    inner = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception) else error
    if isinstance(inner, _PrivateAddressError):
        return str(inner)
    if isinstance(inner, TimeoutError):
        return "it did not answer in time"
    if isinstance(inner, socket.gaierror):
        return "there is no such host, or no way to the internet"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection was cut"
    return (getattr(inner, "strerror", None) or str(inner) or type(inner).__name__).rstrip(".")


class _PrivateAddressError(OSError):
    """A host that lies on this computer or in its own network."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to `Web.open`."""

    def _leave(self, *_: Any) -> None:
        """Follow none."""

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = _leave  # type: ignore[assignment]


class _Http(urllib.request.HTTPHandler):
    """Connects to hosts that are allowed only."""

    def __init__(self, trusted: Collection[_Place]) -> None:
        super().__init__()
        self._trusted = trusted

    def http_open(self, request: urllib.request.Request) -> Any:
        """Send the request."""
        return self.do_open(partial(_connection, http.client.HTTPConnection, self._trusted), request)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    """The same, encrypted; the system's certificates are checked."""

    def __init__(self, trusted: Collection[_Place]) -> None:
        super().__init__()
        self._trusted = trusted

    def https_open(self, request: urllib.request.Request) -> Any:
        """Send the request."""
        return self.do_open(partial(_connection, http.client.HTTPSConnection, self._trusted), request)  # type: ignore[arg-type]


def _opener(trusted: Collection[_Place]) -> urllib.request.OpenerDirector:
    allowed = {*trusted, *_proxies()}
    return urllib.request.build_opener(_NoRedirect(), _Http(allowed), _Https(allowed))


def _proxies() -> set[_Place]:
    """Where the user's proxies are; one that is no address is left out, and the request that needs it fails with a message."""
    places: set[_Place] = set()
    given = urllib.request.getproxies()
    for address in (given[kind] for kind in ("http", "https", "all") if given.get(kind)):
        with suppress(ValueError):
            parts = urlsplit(address if "//" in address else f"//{address}")
            ports = (parts.port,) if parts.port else (80, 443)  # without a port, http.client takes that of the request
            places |= {((parts.hostname or "").rstrip("."), port) for port in ports}
    return places


def _place_of(address: str) -> _Place:
    """Host and port."""
    return origin_of(address)[1:]


def _connection(
    kind: type[http.client.HTTPConnection], trusted: Collection[_Place], host: str, **keywords: Any
) -> http.client.HTTPConnection:
    connection = kind(host, **keywords)
    # The address is looked up once, judged, and used: a name that is looked up twice may give another address the second time.
    connection._create_connection = partial(_connect, trusted)  # type: ignore[attr-defined]
    return connection


def _connect(trusted: Collection[_Place], address: tuple[str, int], timeout: float, source_address: Any = None) -> socket.socket:
    """A connection to the first address of a host that answers; refuses hosts in the computer's own network that are not trusted."""
    host, port = address
    if (host.lower().rstrip("."), port) in trusted:
        return socket.create_connection(address, timeout, source_address)
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    numbers = [str(place[4][0]) for place in places]
    if not numbers or not all(map(_is_public, numbers)):
        raise _PrivateAddressError(f"{host} lies on this computer or in its own network")
    failed: OSError | None = None
    for number in numbers:
        try:
            return socket.create_connection((number, port), timeout, source_address)
        except OSError as error:  # noqa: PERF203  there are few
            failed = error
    raise failed or OSError("there is no such host")


def _is_public(number: str) -> bool:
    """Whether an IP address belongs to the internet."""
    address = ipaddress.ip_address(number.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


def _check_hop(address: str, trusted: Collection[_Place]) -> None:
    """Refuse hosts that are numbers or names of the own network; other names are judged by `_connect`, unless a proxy looks them up."""
    host = host_of(address)
    if _place_of(address) in trusted:
        return
    try:
        private = not _is_public(host)
    except ValueError:
        private = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
        private = private or bool(re.fullmatch(r"(?:0x[0-9a-f]+|\d+)(?:\.(?:0x[0-9a-f]+|\d+)){0,3}", host))  # 127.1, 0x7f000001, 2130706433
    if private:
        sentence = f"{shown(address)} lies on this computer or in its own network, so it is not asked."
        raise InstallError(sentence, setting="address")


def _is_private_line(address: str, own_places: Collection[_Place]) -> bool:
    """Whether a token may be sent there: encrypted, or to a mirror on this computer that the user has set."""
    place = _place_of(address)
    return urlsplit(address).scheme == "https" or (place in own_places and place[0] in ("127.0.0.1", "localhost", "::1"))


def _next_address(now: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        InstallError: to no web address, or from https to http.
    """
    try:
        following = urljoin(now, location.strip())
        parts = urlsplit(following)
        allowed = bool(location) and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        allowed = False
    if not allowed:
        raise InstallError(f"{shown(now)} leads to something that is not a web address.")
    if urlsplit(now).scheme == "https" and parts.scheme == "http":
        raise InstallError(f"{shown(now)} leads from an encrypted connection to {shown(following)}, which is none; that is not followed.")
    return quote(following, safe="%/:=&?~#+!$,;'@()*[]").partition("#")[0]


def _pause(error: urllib.error.HTTPError, attempt: int) -> float | None:
    """Seconds until a server that is busy may be asked again; None where it is not, or wants too long a wait."""
    if error.code not in _BUSY:
        return None
    seconds = _wish_to_wait(error)
    if seconds is None:
        return float(2**attempt)
    return seconds if seconds <= _LONGEST_WAIT else None


def _wish_to_wait(error: urllib.error.HTTPError) -> float | None:
    """Seconds of a `Retry-After`; None without one."""
    given = (error.headers.get("Retry-After") or "").strip()
    if given.isdecimal():
        return float(given[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _own_words(error: urllib.error.HTTPError) -> str:
    """The sentence in the JSON or the headers of a refusal; empty where there is none."""
    said: Any = error.headers.get("X-Error-Message")
    try:
        if not said and "json" in error.headers.get("Content-Type", ""):
            tree = json.loads(error.read(_MOST_WORDS))
            said = tree.get("message") or tree.get("error") if isinstance(tree, dict) else ""
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        said = ""
    text = " ".join(said.split()) if isinstance(said, str) else ""
    return (text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}…").rstrip(".")
