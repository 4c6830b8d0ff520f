from pillarbox.mail.seal import KEY_SIZE, MAC_SIZE, seal, verify

KEY = bytes(range(KEY_SIZE))


def test_a_seal_is_verified_with_its_key_and_data_alone() -> None:
    mac = seal(KEY, b"envelope")
    assert len(mac) == MAC_SIZE
    assert verify(KEY, b"envelope", mac)
    assert not verify(KEY, b"Envelope", mac)
    assert not verify(bytes(KEY_SIZE), b"envelope", mac)
    assert not verify(KEY, b"envelope", b"")
    assert not verify(KEY, b"envelope", mac[:-1])
