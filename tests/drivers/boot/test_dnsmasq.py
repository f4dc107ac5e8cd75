"""dnsmasq's configuration and its log lines, without dnsmasq: nothing a person or a host says gets through raw."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.boot.capabilities import BootHost
from fleetd.drivers.boot.dnsmasq import LogReader, Settings, check, config_text, hosts_text
from fleetd.drivers.boot.scripts import check_url, is_rom, replace_text, start_text, start_url
from fleetd.kit.errors import Invalid

URL = "http://10.77.0.1:8680"
OWN = Settings(interface="br0", address="10.77.0.1", range="10.77.0.50,10.77.0.99,255.255.255.0")
PROXY = msgspec.structs.replace(OWN, mode="proxy", range="10.77.0.0/24")


def lines(settings: Settings = OWN, **more: str) -> list[str]:
    return config_text(settings, URL, state="/var/lib/fleetd-boot", **more).splitlines()


def test_every_firmware_gets_its_loader_and_every_ipxe_its_script():
    text = lines()
    assert "dhcp-boot=tag:bios,tag:!ipxe,undionly.kpxe,,10.77.0.1" in text
    assert "dhcp-boot=tag:efi,tag:!ipxe,snponly.efi,,10.77.0.1" in text
    assert f"dhcp-boot=tag:efihttp,tag:httpclient,tag:!ipxe,{URL}/boot/snponly.efi" in text
    assert f"dhcp-boot=tag:ipxe,{start_url(URL)},,10.77.0.1" in text
    assert "dhcp-ignore=tag:!fleet" in text
    assert "port=0" in text, "no DNS"


def test_unknown_machines_are_served_only_when_told():
    assert "dhcp-ignore=tag:!fleet" not in lines(msgspec.structs.replace(OWN, unknown="serve"))
    assert "dhcp-ignore=tag:!fleet" in lines(PROXY)


def test_a_proxy_hands_out_no_address():
    text = lines(PROXY)
    assert "dhcp-range=10.77.0.0,proxy,255.255.255.0" in text
    assert 'pxe-service=tag:!ipxe,x86PC,"fleetd",undionly.kpxe,10.77.0.1' in text
    assert not [line for line in text if "authoritative" in line or "router" in line]


def test_router_and_dns_only_when_named():
    assert "dhcp-option=option:router" in lines()
    text = lines(msgspec.structs.replace(OWN, router="10.77.0.254", dns="10.0.0.53"))
    assert "dhcp-option=option:router,10.77.0.254" in text
    assert "dhcp-option=option:dns-server,10.0.0.53" in text


def test_a_user_stands_there_only_for_root():
    assert not [line for line in lines() if line.startswith("user=")]
    assert "user=root" in lines(user="root")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interface", "br0\ndhcp-script=/bin/sh"),
        ("interface", "br0,br1"),
        ("interface", ""),
        ("interface", "a" * 16),
        ("address", "10.77.0.1,evil"),
        ("address", "10.77.0"),
        ("address", "fe80::1"),
        ("address", "10.99.0.1\n"),
        ("range", "10.77.0.50,10.77.0.99"),
        ("range", "10.77.0.50,10.77.0.99,255.255.255.0,infinite"),
        ("range", "10.77.0.99,10.77.0.50,255.255.255.0"),
        ("range", "10.77.0.50,10.78.0.99,255.255.255.0"),
        ("range", "10.77.0.50,10.77.0.99,255.0.255.0"),
        ("range", "10.77.0.1,10.77.0.99,255.255.255.0"),
        ("range", "set:x,10.77.0.50,10.77.0.99"),
        ("lease", "10m,tag:x"),
        ("lease", "0"),
        ("lease", "forever"),
        ("router", "10.77.0.254,1.1.1.1"),
        ("dns", "dns.example"),
        ("program", "dnsmasq --conf-script=x"),
        ("program", "../../bin/sh;"),
    ],
)
def test_a_value_that_could_be_more_is_refused_with_its_key(name, value):
    with pytest.raises(Invalid) as refused:
        check(msgspec.structs.replace(OWN, **{name: value}), URL)
    assert refused.value.where == name


@pytest.mark.parametrize("value", ["10.77.0.50,10.77.0.99,255.255.255.0", "10.77.0.1/24", "10.78.0.0/24", "x"])
def test_a_proxy_range_is_a_network_with_us_in_it(value):
    with pytest.raises(Invalid):
        lines(msgspec.structs.replace(PROXY, range=value))


@given(st.text(max_size=40), st.sampled_from(["interface", "address", "range", "lease", "router", "dns", "program"]))
def test_no_text_adds_a_line(text, name):
    try:
        made = lines(msgspec.structs.replace(OWN, **{name: text}))
    except Invalid:
        return
    assert len(made) == len(lines())


@pytest.mark.parametrize("state", ["relative", "/a,b", "/a\nb", "/a b"])
def test_an_odd_state_directory_is_refused(state):
    with pytest.raises(Invalid):
        config_text(OWN, URL, state=state)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "http://x/a b",
        "http://x/${uuid}",
        "http://x,y",
        "http://x\n",
        "http://u:p@x",
        "http://x?y=1",
        "http://" + "a" * 200,
        "http://x:99x",
        "",
    ],
)
def test_an_odd_url_is_refused(url):
    with pytest.raises(Invalid):
        check_url(url)


def test_a_plain_url_loses_its_slash_and_must_fit_into_a_proxys_answer():
    assert check_url("http://boot.example:8680/") == "http://boot.example:8680"
    with pytest.raises(Invalid) as refused:
        check(OWN, "http://" + "a" * 130)
    assert refused.value.where == "url"
    assert len(start_url("http://" + "a" * 100)) < 128
    assert start_text(URL).startswith(f"#!ipxe\nchain --replace {URL}/boot/${{netX/mac}}.ipxe?uuid=${{uuid}}&")


def test_the_hosts_file_has_macs_and_nothing_else():
    hosts = [
        BootHost(name="b,set:evil", mac="04:3F:72:AA:00:02", rack="r", site="s"),
        BootHost(name="a", mac="04-3f-72-aa-00-01", rack="r", site="s"),
        BootHost(name="x", mac="04:3f:72:aa:00:03,ignore", rack="r", site="s"),
        BootHost(name="y", mac="04:3f:72:aa:00:04\ndhcp", rack="r", site="s"),
    ]
    assert hosts_text(hosts) == "04:3f:72:aa:00:01,set:fleet\n04:3f:72:aa:00:02,set:fleet\n"


# As dnsmasq 2.90 wrote them for QEMU's ROM, OVMF and busybox.
LOG = """\
dnsmasq-dhcp[6176]: 2602982913 available DHCP range: 10.77.0.50 -- 10.77.0.99
dnsmasq-dhcp[6176]: 2602982913 vendor class: PXEClient:Arch:00000:UNDI:002001
dnsmasq-dhcp[6176]: 2602982913 user class: iPXE
dnsmasq-dhcp[6176]: 2602982913 DHCPDISCOVER(br0) 52:54:00:00:00:01
dnsmasq-dhcp[6176]: 2602982913 tags: ipxe, bios, fleet, br0
dnsmasq-dhcp[6176]: 2602982913 DHCPOFFER(br0) 10.77.0.85 52:54:00:00:00:01
dnsmasq-dhcp[6176]: 2602982913 DHCPREQUEST(br0) 10.77.0.85 52:54:00:00:00:01
dnsmasq-dhcp[6176]: 2602982913 DHCPACK(br0) 10.77.0.85 52:54:00:00:00:01
dnsmasq-tftp[6176]: sent /var/lib/fleetd-boot/tftp/undionly.kpxe to 10.77.0.85
dnsmasq-tftp[6176]: error 8 User aborted the transfer received from 10.77.0.85
dnsmasq-tftp[6176]: file /var/lib/fleetd-boot/tftp/pxelinux.0 not found for 10.77.0.85
dnsmasq-tftp: failed sending /var/lib/fleetd-boot/tftp/snponly.efi to 10.77.0.85
dnsmasq-dhcp[6176]: 7 vendor class: PXEClient:Arch:00007:UNDI:003000
dnsmasq-dhcp[6176]: 7 DHCPDISCOVER(br0) 52:54:00:00:00:09 ignored
dnsmasq-dhcp[6176]: 8 DHCPDISCOVER(br0) 52:54:00:00:00:0a no address available
dnsmasq-dhcp[6176]: 9 vendor class: PXEClient:Arch:00007:UNDI:003000
dnsmasq-dhcp[6176]: 9 PXE(br0) 52:54:00:00:00:0b proxy
dnsmasq-dhcp[6176]: 9 PXE(br0) 52:54:00:00:00:0b proxy-ignored
dnsmasq-dhcp[6176]: 9 PXE(br0) 10.89.7.60 52:54:00:00:00:0b undionly.kpxe
dnsmasq-dhcp[6176]: 11 DHCPNAK(br0) 10.77.0.85 52:54:00:00:00:0c wrong network
dnsmasq-dhcp[6176]: no address range available for DHCP request via 10.79.0.1
dnsmasq-dhcp[6176]: no address range available for DHCP request with subnet selector 10.79.0.0
dnsmasq[6176]: started, version 2.90 DNS disabled
"""


def test_the_log_is_read_as_sightings():
    reader = LogReader()
    seen = [found for line in LOG.splitlines() if (found := reader.read(line))]
    assert [(s.stage, s.mac[-2:], s.source, s.detail) for s in seen] == [
        ("dhcp", "01", "", "iPXE asks"),
        ("dhcp", "01", "10.77.0.85", "iPXE got 10.77.0.85"),
        ("tftp", "01", "10.77.0.85", "undionly.kpxe"),
        ("tftp", "01", "10.77.0.85", "pxelinux.0 is not there"),
        ("tftp", "01", "10.77.0.85", "snponly.efi was cut off"),
        ("dhcp", "09", "", "UEFI firmware asks; ignored: the inventory does not have this MAC"),
        ("dhcp", "0a", "", "a system asks; no address available"),
        ("dhcp", "0b", "", "UEFI firmware was told its boot file"),
        ("dhcp", "0b", "", "UEFI firmware asks; ignored: the inventory does not have this MAC"),
        ("dhcp", "0b", "", "UEFI firmware was told its boot file"),
        ("dhcp", "0c", "", "a system: DHCPNAK 10.77.0.85; wrong network"),
        ("relay", "", "10.79.0.1", "a DHCP relay hands on requests of a network that the boot service does not have"),
        ("relay", "", "10.79.0.0", "a DHCP relay hands on requests of a network that the boot service does not have"),
    ]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("no address range available for DHCP request via 10.79.0.1", "dnsmasq.relayed"),
        ("no address range available for DHCP request via br0", "dnsmasq.range"),
        ("Error sending DHCP packet to 10.79.0.1: Network is unreachable", "route"),
        ("DHCP packet received on br0 which has no address", "dnsmasq.address"),
        ("failed to write /var/lib/fleetd-boot/leases: No space left on device (retry in 60 s)", "room"),
        ("ARP-cache injection failed: Operation not permitted", "CAP_NET_ADMIN"),
    ],
)
def test_what_dnsmasq_cannot_do_is_said_with_a_remedy(line, remedy):
    seen = LogReader().read(f"dnsmasq-dhcp[1]: {line}")
    assert seen is not None
    assert remedy in seen.remedy
    assert (seen.stage == "relay") == ("via 10." in line)


@given(st.text(max_size=300) | st.sampled_from(LOG.splitlines()).flatmap(lambda x: st.text(max_size=9).map(x.__add__)))
def test_no_line_does_more_than_mean_nothing(line):
    reader = LogReader()
    seen = reader.read(line)
    assert seen is None or (len(seen.detail) < 200 and len(seen.mac) <= 17)


def test_what_the_reader_remembers_is_bounded():
    reader = LogReader()
    for n in range(10_000):
        reader.read(f"dnsmasq-dhcp[1]: {n} vendor class: {'x' * 500}")
    assert len(reader._classes) <= 4096


def test_only_a_bios_roms_own_ipxe_is_replaced():
    assert is_rom("pcbios", "virtio-net")
    assert is_rom("pcbios", "")
    assert not is_rom("pcbios", "undionly")
    assert not is_rom("efi", "virtio-net")
    assert not is_rom("", "")
    assert "chain" in replace_text("tftp://10.77.0.1")
