from __future__ import annotations

import pytest

from services.gateway.client_address import UNKNOWN, read_client_address, read_scheme, throttling_address


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted_proxies", "expected"),
    [
        ("192.0.2.1", "198.51.100.9", 0, "192.0.2.1"),
        ("192.0.2.1", "6.6.6.6, 198.51.100.9", 1, "198.51.100.9"),
        ("192.0.2.1", "6.6.6.6, 198.51.100.9, 10.0.0.2", 2, "198.51.100.9"),
        ("192.0.2.1", "198.51.100.9", 2, "192.0.2.1"),
        ("192.0.2.1", None, 1, "192.0.2.1"),
        ("192.0.2.1", "nonsense", 1, "192.0.2.1"),
        ("::ffff:192.0.2.1", None, 0, "192.0.2.1"),
        ("fe80::1%eth0", None, 0, "fe80::1"),
        (None, None, 0, UNKNOWN),
    ],
)
def test_only_what_trusted_proxies_wrote_counts(peer, forwarded_for, trusted_proxies, expected):
    assert read_client_address(peer, forwarded_for, trusted_proxies=trusted_proxies) == expected


def test_the_scheme_is_a_trusted_proxys_word():
    assert read_scheme("http", "https", trusted_proxies=1) == "https"
    assert read_scheme("http", "https", trusted_proxies=0) == "http"
    assert read_scheme("http", "gopher", trusted_proxies=1) == "http"


def test_all_addresses_of_an_ipv6_client_count_as_one():
    assert throttling_address("2001:db8:1:2:3::4") == throttling_address("2001:db8:1:2:ffff::1")
    assert throttling_address("2001:db8:1:2::") != throttling_address("2001:db8:1:3::")
    assert throttling_address("192.0.2.1") == "192.0.2.1"
