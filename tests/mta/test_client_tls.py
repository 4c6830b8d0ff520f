import ssl

import pytest

from pillarbox.errors import TempFail
from pillarbox.mta.client_tls import ClientContexts
from pillarbox.roles.delivery import SessionOrder
from tests.mta.support import Material


def context(**options):
    order = SessionOrder(
        session=1, generation=1, action="out", protocol="smtp", host="h", address="127.0.0.1", port=25, helo="h",
        **options,
    )  # fmt: skip
    return ClientContexts(material=Material()).context(order)


@pytest.mark.parametrize(
    ("protocols", "lowest", "highest"),
    [
        ("", ssl.TLSVersion.TLSv1_2, None),
        ("tlsv1.3", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        ("secure", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        ("all,!tlsv1.3", ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2),
        ("!tlsv1.0:!tlsv1.1", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_protocols(protocols, lowest, highest):
    made = context(protocols=protocols)
    assert made.minimum_version == lowest
    assert highest is None or made.maximum_version == highest


@pytest.mark.parametrize(
    "options", [{"protocols": "tlsv9"}, {"protocols": "tlsv1.3,!tlsv1.3"}, {"ciphers": "NONSENSE"}, {"ca": "none"}]
)
def test_options_that_cannot_be_used(options):
    with pytest.raises(TempFail, match='TLS of action "out" cannot be used'):
        context(**options)


def test_verification_is_on_only_where_it_is_asked_for():
    assert context().verify_mode is ssl.CERT_NONE
    strict = context(tls_verify=True, ca="ca", pki="client")
    assert strict.verify_mode is ssl.CERT_REQUIRED and strict.check_hostname
    assert len(strict.get_ca_certs()) == 1
