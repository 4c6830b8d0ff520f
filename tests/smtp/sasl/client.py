"""The client's side of SCRAM-SHA-256, written from RFC 5802 by itself: nothing of the server's is used."""

import base64
import hashlib
import hmac


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


class ScramClient:
    """`binding`: its type and data; `flag`: the GS2 flag where there is none."""

    def __init__(
        self,
        user: str,
        password: str,
        *,
        binding: tuple[str, bytes] | None = None,
        flag: str = "n",
        nonce: str = "rOprNGfwEbeRWgbNEkqO",
        authzid: str = "",
    ) -> None:
        self.password = password
        self.header = f"p={binding[0]}" if binding else flag
        self.header += f",{'a=' + authzid if authzid else ''},"
        self.data = binding[1] if binding else b""
        self.bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self.server_signature = b""

    def first(self) -> str:
        return b64((self.header + self.bare).encode())

    def final(self, challenge: str) -> str:
        server_first = base64.b64decode(challenge).decode()
        fields = dict(part.split("=", 1) for part in server_first.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        without_proof = f"c={b64(self.header.encode() + self.data)},r={fields['r']}"
        message = f"{self.bare},{server_first},{without_proof}".encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return b64(f"{without_proof},p={b64(proof)}".encode())

    def accepts(self, challenge: str) -> bool:
        return base64.b64decode(challenge) == f"v={b64(self.server_signature)}".encode()
