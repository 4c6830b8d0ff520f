"""Certificates and keys of outgoing sessions, each configuration with its own."""

import os
import ssl
from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Relay
from pillarbox.daemon.assembly.material import ClientMaterial
from pillarbox.daemon.settings import Generation, KeyPair
from pillarbox.errors import PermFail, TempFail
from tests.system.certificates import write_pair


def generation(number: int, folder: Path, *, key: bytes = b"", authority: bytes = b"", **action: str) -> Generation:
    folder.mkdir(exist_ok=True)
    cert, secret = folder / f"{number}.crt", folder / f"{number}.key"
    write_pair(cert, secret, "mx.example.org")
    relay = Relay(name="out", line=7, **action)  # type: ignore[arg-type]
    return Generation(
        config=Config(hostname="x", file="smtpd.conf", generation=number, actions={"out": relay}),
        pki={"p": KeyPair(cert.read_bytes(), key or secret.read_bytes())},
        ca={"a": authority or cert.read_bytes()},
    )


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_each_configuration_has_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = descriptors()
    first, second = generation(0, tmp_path), generation(1, tmp_path, pki="p", ca="a")
    material = ClientMaterial([first])
    material.add(second)
    for each in (first, second):
        cert, key = material.pair(each.number, "p")
        ssl.create_default_context().load_cert_chain(cert, key)
        assert Path(cert).read_bytes() == each.pki["p"].cert
        assert material.authorities(each.number, "a").encode() == each.ca["a"]
    for number in (0, 1):
        material.forget(number)
        with pytest.raises(TempFail, match=f"configuration {number} is gone"):
            material.pair(number, "p")
    material.forget(1)
    assert descriptors() <= before  # fewer, where what an earlier test left was collected meanwhile


@pytest.mark.parametrize(
    ("faults", "action"),
    [({"key": b"no key"}, {"pki": "p"}), ({"authority": b"none"}, {"ca": "a"}), ({}, {"pki": "unknown"})],
    ids=str,
)
def test_what_an_action_cannot_use_is_refused_by_its_line(
    tmp_path: Path, faults: dict[str, bytes], action: dict[str, str]
) -> None:
    before = descriptors()
    material = ClientMaterial([])
    with pytest.raises(PermFail, match=r'^smtpd\.conf:7: action "out": TLS: '):
        material.add(generation(1, tmp_path, **faults, **action))  # type: ignore[arg-type]
    with pytest.raises(TempFail):
        material.pair(1, "p")
    assert descriptors() <= before  # fewer, where what an earlier test left was collected meanwhile
