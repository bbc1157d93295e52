"""The address rule: what looks public to one test and reaches a private service all the same is refused."""

import pytest

from broker.outbound.addresses import SystemResolver, is_public


@pytest.mark.parametrize("address", ["140.82.121.4", "1.1.1.1", "2606:4700:4700::1111", "::ffff:140.82.121.4"])
def test_a_providers_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9"),  # carrier NAT, documentation
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),  # multicast, reserved, 6to4 relay
        *("::1", "::", "::127.0.0.1", "fe80::1", "fe80::1%2", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:100.64.0.1"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe"),  # NAT64
        *("2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "2001:db8::1", "2001:2::1", "3fff::1", "5f00::1", "100::1"),
        *("2606:4700:4700::1111%eth0", "", "localhost", "0177.0.0.1", "127.1", "2130706433", "1.1.1.1 "),
    ],
)
def test_what_is_not_on_the_public_internet_is_refused(address: str) -> None:
    assert not is_public(address)


async def test_the_system_resolver_answers_with_address_texts() -> None:
    resolver = SystemResolver()

    assert await resolver("127.0.0.1", 443) == ["127.0.0.1"]
    assert set(await resolver("localhost", 443)) <= {"127.0.0.1", "::1"}
    resolver.close()
