"""Whose request it is, as far as the network tells."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

UNKNOWN = "0.0.0.0"  # noqa: S104  Nothing is bound to it.


def read_client_address(peer: str | None, forwarded_for: str | None, *, trusted_proxies: int) -> str:
    """The client's address.

    Without trusted proxies it is the peer's. With N of them it is the N-th entry of X-Forwarded-For from the
    right, which the outermost of them wrote; entries further left are whatever the client made up.
    """
    candidate = peer
    if trusted_proxies:
        entries = [entry.strip() for entry in (forwarded_for or "").split(",")]
        if len(entries) >= trusted_proxies:
            candidate = entries[-trusted_proxies]
    return _normal(candidate) or _normal(peer) or UNKNOWN


def read_scheme(own: str, forwarded_proto: str | None, *, trusted_proxies: int) -> str:
    """`http` or `https`, as the client used it; a proxy's word counts only where proxies are trusted."""
    if trusted_proxies and forwarded_proto in ("http", "https"):
        return forwarded_proto
    return own


def throttling_address(address: str) -> str:
    """What rates are counted by: an IPv6 client owns its whole /64."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address


def _normal(text: str | None) -> str | None:
    try:
        parsed = ip_address(text or "")
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    # A scope (fe80::1%eth0) means something only on the machine that wrote it.
    return str(parsed).partition("%")[0]
