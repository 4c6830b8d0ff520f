"""Internationalized addresses: their ASCII forms, and which are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.mail import idn


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        ("Example.ORG", "Example.ORG"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),  # decomposed
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("straße.example", "xn--strae-oqa.example"),
    ],
)
def test_the_ascii_form_of_a_domain(domain, ascii_form):
    assert idn.to_ascii(domain) == ascii_form


@pytest.mark.parametrize("domain", ["bü cher.example", "ü" * 256, "ü-.example", "☃\ufffd.example"])
def test_what_has_no_ascii_form(domain):
    with pytest.raises(ValueError):
        idn.to_ascii(domain)
    assert idn.fold_domain(domain) == domain.lower()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Jürgen@BÜCHER.example", "jürgen@xn--bcher-kva.EXAMPLE"),
        ("ju\u0308rgen@x", "jürgen@x"),
        ("@bücher.example", "@xn--bcher-kva.example"),
        ("JÜRGEN", "jürgen"),
    ],
)
def test_the_same_address_in_other_letters(one, other):
    assert idn.fold_address(one) == idn.fold_address(other)


@pytest.mark.parametrize(
    ("address", "forms"),
    [
        ("Alice@Example.org", ["alice@example.org"]),
        ("a@Bücher.example", ["a@bücher.example", "a@xn--bcher-kva.example"]),
        ("a@XN--BCHER-KVA.example", ["a@xn--bcher-kva.example", "a@bücher.example"]),
        ("@bücher.example", ["@bücher.example", "@xn--bcher-kva.example"]),
        ("Bücher.example", ["bücher.example", "xn--bcher-kva.example"]),
        ("a@xn--ü", ["a@xn--ü"]),
    ],
)
def test_the_ways_in_which_an_address_may_be_stored(address, forms):
    assert idn.address_forms(address)[:2] == forms[:2]


def test_stars_of_patterns_stay():
    assert idn.fold_domain("*.Bücher.example") == "*.xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("address", "ascii_form"),
    [
        ("a@b.example", "a@b.example"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("jürgen@b.example", None),
        ("a@ü b", None),
        ("", ""),
    ],
)
def test_the_ascii_form_of_an_address(address, ascii_form):
    assert idn.ascii_address(address) == ascii_form


LETTERS = st.characters(exclude_characters="\\", exclude_categories=["Cs", "Cc", "Cn", "Zs", "Zl", "Zp", "Cf", "Co"])


@given(st.text(LETTERS))
def test_unitext_goes_there_and_back(text):
    encoded = idn.encode_unitext(text)
    assert encoded.isascii() and idn.decode_unitext(encoded) == text


@pytest.mark.parametrize("text", ["a\\x{0D}b", "\\x{110000}", "\\x{D800}", "\\x{}", "\\x{1}"])
def test_what_decodes_to_no_character_stays(text):
    assert idn.decode_unitext(text) == text


@given(st.text())
def test_folding_never_fails_and_is_final(text):
    assert idn.fold_address(idn.fold_address(text)) == idn.fold_address(text)
    assert idn.fold_domain(idn.fold_domain(text)) == idn.fold_domain(text)
