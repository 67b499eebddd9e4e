"""Which network addresses a user's URL may reach: the public internet, and nothing else unless a setting allows it.

Deny by default: an IPv4 address is public when no network of the table holds it, an IPv6 address when it lies in the
global unicast block 2000::/3, no network of the table holds it, and it hides no IPv4 address. Forms that carry an IPv4
address inside an IPv6 one (mapped, compatible, translated, 6to4, NAT64, Teredo, ISATAP) are refused whole, because what
they reach depends on the routers between. Sources: IANA's special-purpose address registries (RFC 6890 and successors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import ClassVar

from pixelgate_common.errors import PixelgateError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: Every network that is not public, with the reason. The first network that holds an address names its reason.
REFUSED_NETWORKS: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network (unspecified)"),
        ("10.0.0.0/8", "private (RFC 1918)"),
        ("100.64.0.0/10", "carrier-grade NAT (RFC 6598)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "host agent of a cloud"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
        ("172.16.0.0/12", "private (RFC 1918)"),
        ("192.0.0.0/24", "IETF protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay (deprecated)"),
        ("192.168.0.0/16", "private (RFC 1918)"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4 mapped into IPv6"),
        ("::ffff:0:0:0/96", "IPv4 translated into IPv6"),
        ("::/96", "IPv4 compatible IPv6 (deprecated)"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64 for local use"),
        ("100::/64", "discard only"),
        ("100:0:0:1::/64", "dummy prefix"),
        ("2001::/32", "Teredo"),
        ("2001:2::/48", "benchmarking"),
        ("2001:db8::/32", "documentation"),
        ("2001::/23", "IETF protocol assignments"),
        ("2002::/16", "6to4"),
        ("3ffe::/16", "6bone (returned)"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local (deprecated)"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_ISATAP_MARKS = (0x0000_5EFE, 0x0200_5EFE)
# Whole /96 networks that carry an IPv4 address in their last 32 bits.
_LAST_32_BITS = tuple(
    IPv6Network(network) for network in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z")
_NUMERIC_LABEL = re.compile(r"[0-9]+\Z|0x[0-9a-f]*\Z")
_DOTTED_QUAD = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}\Z")


class AddressRefused(PixelgateError):
    """The host of a URL does not exist, or is not on the public internet, or hides its address in an unusual form.

    One error and one sentence for all three, so that an answer never tells which names exist in a private network.
    """

    status: ClassVar[int] = 422
    code: ClassVar[str] = "address_refused"
    title: ClassVar[str] = "This address is not fetched"


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Public addresses, plus the `allow` networks (setting `PIXELGATE_FETCH_ALLOW`) although they are private.

    An allowed IPv6 network admits a hidden IPv4 address only if that one is permitted too.
    """

    allow: tuple[IPNetwork, ...] = ()

    def permits(self, ip: IPAddress) -> bool:
        """Return whether `ip` may be connected to."""
        if is_public(ip):
            return True
        if isinstance(ip, IPv6Address) and ip.scope_id is not None:
            return False
        if not any(ip.version == network.version and ip in network for network in self.allow):
            return False
        return all(self.permits(hidden) for hidden in hidden_ipv4(ip))

    def check_host(self, host: str) -> IPAddress | None:
        """Return the address that `host` spells (None for a name, which must be resolved and given to `check_answers`).

        `host` is ASCII (IDNA done), without brackets and port. Raises `AddressRefused` for an address that is not
        permitted and for whatever is neither an IP address in its usual form nor a host name: decimal, octal, hex and
        short addresses, zone ids, escapes.
        """
        try:
            literal = parse_literal(host)
        except ValueError as error:
            raise refusal(host) from error
        if literal is not None and not self.permits(literal):
            raise refusal(host)
        return literal

    def check_answers(self, host: str, answers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Return `answers`, each once, in order. Raises `AddressRefused` if there is none, or ANY is not permitted."""
        unique = tuple(dict.fromkeys(answers))
        if not unique or not all(self.permits(ip) for ip in unique):
            raise refusal(host)
        return unique


def refusal(host: str) -> AddressRefused:
    """Return the one error for `host`: what to do, and nothing that name resolution said."""
    return AddressRefused(
        f"The host {host[:253]!r} has no address on the public internet under its usual name or number. Check the URL;"
        " if the host is in your own network, add that network to PIXELGATE_FETCH_ALLOW.",
        field="url",
    )


def parse_networks(networks: Iterable[str]) -> tuple[IPNetwork, ...]:
    """Return CIDR texts as networks. Raises ValueError, naming the entry, for one that is not a network."""
    parsed = []
    for text in networks:
        try:
            parsed.append(ip_network(text.strip()))
        except ValueError as error:
            raise ValueError(f"PIXELGATE_FETCH_ALLOW: {text!r} is no network such as 10.0.0.0/8 ({error})") from error
    return tuple(parsed)


def parse_literal(host: str) -> IPAddress | None:
    """Return the IP address that `host` spells in its usual form, None for a host name. Raises ValueError otherwise."""
    if ":" in host:
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise ValueError("an address with a zone id belongs to this machine's own links")
        return address
    name = host.lower().removesuffix(".")
    if not _HOST_NAME.match(name):
        raise ValueError("not a host name")
    # What ends in a number is an IPv4 address to every URL parser, in whatever notation (WHATWG URL, §3.5).
    if _NUMERIC_LABEL.match(name.rpartition(".")[2]):
        if not _DOTTED_QUAD.match(name):
            raise ValueError("an IPv4 address in an unusual notation")
        return IPv4Address(name)  # refuses leading zeros, which some read as octal
    return None


def is_public(ip: IPAddress | str) -> bool:
    """Return whether `ip` is a global unicast address that hides no other. A text that is no address is not public."""
    if isinstance(ip, str):
        try:
            ip = ip_address(ip)
        except ValueError:
            return False
    return why_not_public(ip) is None


def why_not_public(ip: IPAddress) -> str | None:
    """Return the reason why `ip` is not public, None when it is. For logs: never part of an answer."""
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return "an address with a zone id"
    for network, reason in REFUSED_NETWORKS:
        if ip.version == network.version and ip in network:
            return reason
    if isinstance(ip, IPv6Address):
        if ip not in _GLOBAL_UNICAST_V6:
            return "outside the global unicast block"
        if _is_isatap(ip):
            return "ISATAP"
    return None


def hidden_ipv4(ip: IPAddress) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that `ip` carries: none, one, or both of Teredo (server, and client un-obfuscated)."""
    if isinstance(ip, IPv4Address):
        return ()
    bits = int(ip)
    if ip in _TEREDO:
        return IPv4Address(bits >> 64 & 0xFFFF_FFFF), IPv4Address(~bits & 0xFFFF_FFFF)
    if ip in _SIX_TO_FOUR:
        return (IPv4Address(bits >> 80 & 0xFFFF_FFFF),)
    if _is_isatap(ip) or (bits > 1 and any(ip in network for network in _LAST_32_BITS)):
        return (IPv4Address(bits & 0xFFFF_FFFF),)
    return ()


def _is_isatap(ip: IPv6Address) -> bool:
    """Return whether the interface id is RFC 5214's: ::0:5efe:a.b.c.d, or ::200:5efe:a.b.c.d for a global address."""
    return int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP_MARKS
