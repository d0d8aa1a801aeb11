"""Which addresses a push-mode workspace may name as its own (contract 2.1).

The platform would call that address, so it must not lead back into the machine or the network it runs on.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from molecule_runtime.reference_platform.refusals import Refusal

_CARRIER_GRADE_NAT = ipaddress.ip_network("100.64.0.0/10")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_push_url(url: str) -> None:
    """Accept a public http(s) URL; the name `localhost` passes, for development.

    Names are not resolved here: that belongs to the moment of the call, when the answer cannot change any more.

    Raises:
        Refusal: 400, missing, not http(s), or a blocked address.
    """
    if not url:
        raise Refusal(400, "url is required for push-mode workspaces")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise Refusal(400, "url is not a valid URL") from None
    if parts.scheme not in ("http", "https"):
        raise Refusal(400, "url scheme must be http or https")
    if not host:
        raise Refusal(400, "url has no host")
    address = _literal(host)
    label = blocked_label(address) if address is not None else None
    if label is not None:
        raise Refusal(400, f"url targets a blocked address: {label}")


def leads_inside(url: str, *, development: bool) -> bool:
    """Whether a stored URL visibly leads into this machine or its network, or is none; names are not resolved."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return True
    if parts.scheme not in ("http", "https") or not host:
        return True
    if host.rstrip(".").lower() == "localhost":
        return not development
    address = _literal(host)
    return address is not None and blocked_label(address, development=development) is not None


def blocked_label(address: Address, *, development: bool = False) -> str | None:
    """Why the platform must not call an address, or None; loopback is fine in development mode.

    An IPv6 address that stands for an IPv4 one is judged as that one.
    """
    inner = _embedded(address)
    if inner is not None:
        return blocked_label(inner, development=development)
    if address.is_loopback:
        return None if development else "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if isinstance(address, ipaddress.IPv4Address) and address in _CARRIER_GRADE_NAT:
        return "carrier-grade NAT"
    if address.is_unspecified:
        return "unspecified"
    if not address.is_global or address.is_private or address.is_reserved:  # test networks count as private
        return "private"
    return None


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end up at, through the transition mechanisms."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo[1] if address.teredo is not None else None
    return address.ipv4_mapped or address.sixtofour or teredo


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
