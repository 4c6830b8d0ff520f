"""crypt(3) by ctypes, whatever the library is called."""

import ctypes
from collections.abc import Callable

import pytest

from pillarbox.routing import crypt

# crypt(3) of "alice-pw", made with openssl passwd.
SHA512 = b"$6$corpussalt$.pxaP5fL0pGQ8cyB09QHcgXQYpNmLAuiqCeM00xvQyt7bxc5PCtRmNFzamSTI9FjIB7ZiI12HhHReqOGdVAUT1"


def test_a_password_is_hashed_as_the_setting_says() -> None:
    library = crypt.load()
    assert library is not None
    assert library.hash(b"alice-pw", SHA512) == SHA512
    assert library.hash(b"Alice-pw", SHA512) != SHA512
    setting = library.salt(b"$6$", 1000)
    assert setting is not None and setting != library.salt(b"$6$", 1000)
    hashed = library.hash(b"alice-pw", setting)
    assert hashed is not None and library.hash(b"alice-pw", hashed) == hashed


@pytest.mark.parametrize("setting", [b"*", b"!", b"*0", b"$nothing$x", b""])
def test_what_is_no_hash_gives_none(setting: bytes) -> None:
    library = crypt.load()
    assert library is not None and library.hash(b"x", setting) is None


def only(wanted: str) -> Callable[[str | None], ctypes.CDLL]:
    """A system whose library has this name."""
    real = ctypes.CDLL("libcrypt.so.1")

    def find(name: str | None) -> ctypes.CDLL:
        if name != wanted:
            raise OSError(f"{name}: cannot open shared object file")
        return real

    return find


def test_the_library_has_another_name_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", only("libcrypt.so.2"))
    library = crypt.load()
    assert library is not None and library.hash(b"alice-pw", SHA512) == SHA512


def test_a_system_may_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", only("nothing"))
    assert crypt.load() is None
