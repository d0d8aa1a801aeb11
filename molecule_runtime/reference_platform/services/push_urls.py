"""Which addresses a push-mode workspace may name as its own (contract 2.1).

The platform would call that address, so it must not lead back into the machine or the network it runs on.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from molecule_runtime.reference_platform.refusals import Refusal

_CARRIER_GRADE_NAT = ipaddress.ip_network("100.64.0.0/10")


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
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    label = _blocked_label(address)
    if label is not None:
        raise Refusal(400, f"url targets a blocked address: {label}")


def _blocked_label(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if isinstance(address, ipaddress.IPv4Address) and address in _CARRIER_GRADE_NAT:
        return "carrier-grade NAT"
    if address.is_unspecified:
        return "unspecified"
    if address.is_private or address.is_reserved:  # test networks count as private
        return "private"
    return None
