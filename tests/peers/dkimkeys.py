"""Keys that mail is signed with, and what an independent verifier (dkimpy) says of the signatures."""

import base64
import shutil
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def new_key(path: Path, owner: str) -> rsa.RSAPrivateKey:
    """A key in a file that only its owner may read."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if not path.parent.exists():
        path.parent.mkdir()
        shutil.chown(path.parent, owner)
    path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    path.chmod(0o600)
    shutil.chown(path, owner)
    return made


def record(key: rsa.RSAPrivateKey) -> bytes:
    """What the name server would say of its selector."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def verified(message: bytes, key: rsa.RSAPrivateKey, selector: str) -> bool:
    """Is the one signature of a message, with CRLF, valid?"""
    assert message.count(b"DKIM-Signature: ") == 1, message[:2000]
    asked = []

    def answer(name: bytes, timeout: float = 5) -> bytes:
        asked.append(name)
        return record(key)

    valid: bool = dkim.verify(message, dnsfunc=answer)
    assert asked == [f"{selector}._domainkey.example.org.".encode()]
    return valid
