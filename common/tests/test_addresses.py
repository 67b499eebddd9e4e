"""The address table, one test per form; every refused form was at some time a hole in somebody's fetcher."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from pixelgate_common.addresses import (
    REFUSED_NETWORKS,
    AddressPolicy,
    AddressRefused,
    hidden_ipv4,
    is_public,
    parse_networks,
    why_not_public,
)

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "99.255.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1"]
PUBLIC += ["169.253.255.255", "172.15.255.255", "172.32.0.1", "192.167.255.255", "198.17.255.255", "223.255.255.255"]
PUBLIC += ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e", "2620:fe::fe", "2001:200::1"]

NOT_PUBLIC = {
    "this-network": "0.0.0.0",
    "this-network-last": "0.255.255.255",
    "rfc1918-10": "10.0.0.1",
    "rfc1918-10-last": "10.255.255.255",
    "cgnat-first": "100.64.0.0",
    "cgnat-last": "100.127.255.255",
    "cloud-metadata-in-cgnat": "100.100.100.200",
    "loopback": "127.0.0.1",
    "loopback-last": "127.255.255.254",
    "azure-host-agent": "168.63.129.16",
    "link-local-metadata": "169.254.169.254",
    "rfc1918-172-first": "172.16.0.0",
    "rfc1918-172-last": "172.31.255.255",
    "ietf-assignments": "192.0.0.8",
    "oracle-metadata": "192.0.0.192",
    "documentation-1": "192.0.2.1",
    "6to4-relay": "192.88.99.1",
    "rfc1918-192": "192.168.1.1",
    "benchmarking": "198.18.0.1",
    "benchmarking-last": "198.19.255.255",
    "documentation-2": "198.51.100.1",
    "documentation-3": "203.0.113.1",
    "multicast": "224.0.0.1",
    "multicast-last": "239.255.255.255",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "v6-unspecified": "::",
    "v6-loopback": "::1",
    "v6-loopback-zone": "::1%lo",
    "mapped-loopback": "::ffff:127.0.0.1",
    "mapped-private": "::ffff:10.0.0.1",
    "mapped-hex": "::ffff:7f00:1",
    "mapped-public-too": "::ffff:8.8.8.8",
    "translated": "::ffff:0:127.0.0.1",
    "compatible-loopback": "::127.0.0.1",
    "compatible-public-too": "::8.8.8.8",
    "nat64-loopback": "64:ff9b::127.0.0.1",
    "nat64-metadata": "64:ff9b::a9fe:a9fe",
    "nat64-public-too": "64:ff9b::8.8.8.8",
    "nat64-local-use": "64:ff9b:1::10.0.0.1",
    "nat64-local-use-deep": "64:ff9b:1:ffff:ffff::1",
    "6to4-loopback": "2002:7f00:1::",
    "6to4-private": "2002:c0a8:101::1",
    "6to4-public-too": "2002:808:808::1",
    "teredo-private-server": "2001:0:a00:1::",
    "teredo-private-client": "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "teredo-public-too": "2001:0:808:808:0:0:f7f7:f7f7",
    "isatap-local": "2a00:1450::5efe:10.0.0.1",
    "isatap-global": "2a00:1450::200:5efe:127.0.0.1",
    "isatap-public-too": "2a00:1450::200:5efe:8.8.8.8",
    "isatap-link-local": "fe80::5efe:192.168.1.1",
    "discard": "100::1",
    "ietf-v6": "2001:1ff::1",
    "orchid": "2001:20::1",
    "benchmarking-v6": "2001:2::1",
    "documentation-v6": "2001:db8::1",
    "documentation-v6-new": "3fff::1",
    "6bone": "3ffe::1",
    "segment-routing": "5f00::1",
    "unallocated": "4000::1",
    "unique-local": "fd00::1",
    "aws-metadata-v6": "fd00:ec2::254",
    "unique-local-fc": "fc00::1",
    "link-local-v6": "fe80::1",
    "link-local-v6-zone": "fe80::1%eth0",
    "site-local": "fec0::1",
    "multicast-v6": "ff02::1",
    "public-with-zone": "2606:4700:4700::1111%eth0",
    "no-address": "example.com",
    "empty": "",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("network", [str(network) for network, _ in REFUSED_NETWORKS])
def test_both_ends_of_each_refused_network_are_refused_with_a_reason(network: str) -> None:
    (parsed,) = parse_networks([network])
    for address in (parsed[0], parsed[-1]):
        assert not is_public(address)
        assert why_not_public(address)


def test_what_the_standard_library_calls_not_global_is_refused_too() -> None:
    for number in range(0, 2**32, 65_521):
        address = IPv4Address(number)
        assert address.is_global or not is_public(address), address


@pytest.mark.parametrize(
    ("address", "hidden"),
    [
        ("::ffff:1.2.3.4", ["1.2.3.4"]),
        ("::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b:1::1.2.3.4", ["1.2.3.4"]),
        ("2002:102:304::1", ["1.2.3.4"]),
        ("2001:0:102:304:8000:63bf:f5ff:fffe", ["1.2.3.4", "10.0.0.1"]),
        ("2a00:1450::200:5efe:1.2.3.4", ["1.2.3.4"]),
        ("2a00:1450::5efe:1.2.3.4", ["1.2.3.4"]),
        ("::1", []),
        ("2a00:1450::1", []),
    ],
)
def test_hidden_addresses_are_found(address: str, hidden: list[str]) -> None:
    assert hidden_ipv4(IPv6Address(address)) == tuple(map(IPv4Address, hidden))


DISGUISED_HOSTS = {
    "decimal": "2130706433",
    "decimal-public": "134744072",
    "octal": "0177.0.0.1",
    "octal-long": "00000177.0.0.1",
    "leading-zeros": "127.000.000.001",
    "hex": "0x7f000001",
    "hex-upper": "0X7F000001",
    "hex-dotted": "0x7f.0.0.1",
    "hex-empty": "0x",
    "mixed": "0x7f.0.0.01",
    "short": "127.1",
    "short-three": "127.0.1",
    "zero": "0",
    "too-big": "4294967297",
    "five-parts": "127.0.0.1.1",
    "out-of-range": "256.0.0.1",
    "number-last": "example.1",
    "trailing-dot": "127.0.0.1.",
    "two-trailing-dots": "127.0.0.1..",
    "name-with-two-dots": "example.com..",
    "dot": ".",
    "leading-dot": ".example.com",
    "percent": "127%2e0.0.1",
    "space": "127.0.0.1 ",
    "newline": "example.com\n",
    "at": "example.com@127.0.0.1",
    "backslash": "example.com\\127.0.0.1",
    "nul": "127.0.0.1\0.example.com",
    "unicode-digits": "１２７.0.0.1",
    "arabic-digits": "١٢٧.0.0.1",
    "v6-loopback": "::1",
    "v6-loopback-long": "0:0:0:0:0:0:0:1",
    "v6-mapped": "::ffff:127.0.0.1",
    "v6-mapped-hex": "::ffff:7f00:1",
    "v6-zone": "fe80::1%25eth0",
    "v6-zone-raw": "fe80::1%eth0",
    "v6-public-zone": "2606:4700:4700::1111%1",
    "v6-broken": "::ffff:127.0.0.1:80",
    "label-too-long": "a" * 64 + ".com",
    "name-too-long": "a." * 127 + "com",
    "empty": "",
}


@pytest.mark.parametrize("host", DISGUISED_HOSTS.values(), ids=DISGUISED_HOSTS)
def test_disguised_host_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        AddressPolicy().check_host(host)
    assert refused.value.status == 422
    assert [problem.field for problem in refused.value.errors] == ["url"]


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "127.1", "0x7f000001", "::ffff:127.0.0.1"])
def test_a_disguise_stays_refused_where_its_network_is_allowed(host: str) -> None:
    policy = AddressPolicy(parse_networks(["127.0.0.0/8"]))
    assert policy.check_host("127.0.0.1") == IPv4Address("127.0.0.1")
    with pytest.raises(AddressRefused):
        policy.check_host(host)


@pytest.mark.parametrize(
    "host", ["example.com", "example.com.", "a_b.example", "xn--bcher-kva.example", "3com.com", "0xg"]
)
def test_names_pass_to_be_resolved(host: str) -> None:
    assert AddressPolicy().check_host(host) is None


@pytest.mark.parametrize("host", ["8.8.8.8", "8.8.8.8.", "2606:4700:4700::1111"])
def test_public_literals_are_returned(host: str) -> None:
    assert AddressPolicy().check_host(host) == ip_address(host.removesuffix("."))


def test_answers_are_kept_in_order_and_once() -> None:
    answers = [ip_address(text) for text in ("2606:4700:4700::1111", "1.1.1.1", "2606:4700:4700::1111")]
    assert AddressPolicy().check_answers("example.com", answers) == tuple(answers[:2])


@pytest.mark.parametrize(
    "answers",
    [[], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"], ["fe80::1%2"]],
    ids=["none", "private", "public-then-private", "private-then-public", "v6-loopback", "scoped"],
)
def test_one_bad_answer_refuses_all_and_is_not_named(answers: list[str]) -> None:
    with pytest.raises(AddressRefused) as refused:
        AddressPolicy().check_answers("inside.example", map(ip_address, answers))
    assert "inside.example" in refused.value.detail
    assert not any(answer in refused.value.detail for answer in answers)


def test_no_answer_and_a_private_answer_cannot_be_told_apart() -> None:
    details = []
    for answers in ([], [IPv4Address("10.0.0.1")]):
        with pytest.raises(AddressRefused) as refused:
            AddressPolicy().check_answers("inside.example", answers)
        details.append(refused.value.detail)
    assert details[0] == details[1]


@pytest.mark.parametrize(
    ("allow", "address", "permitted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "192.168.0.1", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", False),
        ("fd00::/8", "fd00::1", True),
        ("fd00::/8", "10.0.0.1", False),
        ("fe80::/10", "fe80::1", True),
        ("fe80::/10", "fe80::1%eth0", False),
        ("64:ff9b::/96", "64:ff9b::8.8.8.8", True),
        ("64:ff9b::/96", "64:ff9b::127.0.0.1", False),
        ("::/0", "::ffff:127.0.0.1", False),
        ("::/0", "2002:7f00:1::", False),
        ("2001::/32", "2001:0:808:808:0:0:f7f7:f7f7", True),
        ("2001::/32", "2001:0:808:808:0:0:80ff:fffe", False),
    ],
)
def test_allowed_networks(allow: str, address: str, permitted: bool) -> None:
    assert AddressPolicy(parse_networks([allow])).permits(ip_address(address)) is permitted


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "localhost", ""])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="PIXELGATE_FETCH_ALLOW"):
        parse_networks([text])
