"""A small inventory that is right, to be spoilt one place at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SITE = """\
site: louisiana
halls: [h1]
pdus:
  - {name: lou-a01-pdu-a, rack: lou-a01, address: 10.1.0.10, driver: apc-rpdu2, credentials: pdu-site}
"""

RACK = """\
rack: lou-a01
site: louisiana
hall: h1
power: {budget: 66 kW}
nvlink_domain: null
hosts:
  - name: lou-a01-01
    position: 1
    sku: dell.xe9680-h100-8
    serial: 7XK21B3
    bmc: {protocol: redfish, address: 10.1.1.1, credentials: factory-dell}
    boot_mac: 04:3f:72:aa:00:01
    outlets: [lou-a01-pdu-a/1]
  - name: lou-a01-02
    position: 7
    sku: dell.xe9680-h100-8
    serial: 7XK21B4
    bmc: {protocol: redfish, address: 10.1.1.2, credentials: factory-dell}
    boot_mac: 04:3f:72:aa:00:02
    outlets: [lou-a01-pdu-a/2]
"""


@pytest.fixture
def files() -> dict[str, str]:
    """File name -> text: one site, one rack with two hosts, the three SKUs of the project."""
    skus = {f"skus/{p.name}": p.read_text() for p in sorted((ROOT / "inventory" / "skus").glob("*.yaml"))}
    return {"sites/louisiana.yaml": SITE, "racks/louisiana/lou-a01.yaml": RACK, **skus}
