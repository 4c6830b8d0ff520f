"""A milter on sendmail's own libmilter (pymilter), run by the system's Python: python3 libmilter_milter.py SOCKET.

What it does is in the subject of a message; what it saw is told in fields that it adds.
"""

import sys

import Milter


class Witness(Milter.Base):
    def __init__(self):
        self.id = Milter.uniqueID()
        self.seen = []

    def connect(self, name, family, address):
        self.seen = [f"connect {name} {family} {address[0] if isinstance(address, tuple) else address}"]
        return Milter.CONTINUE

    def hello(self, name):
        self.seen.append(f"helo {name} {self.getsymval('{tls_version}')}")
        return Milter.CONTINUE

    def envfrom(self, sender, *parameters):
        self.fields = []
        self.size = 0
        self.transaction = [f"mail {sender} {' '.join(parameters)} {self.getsymval('{auth_authen}')}"]
        if sender == "<refused@example.org>":
            self.setreply("550", "5.7.1", "Not this one", "not ever")
            return Milter.REJECT
        return Milter.CONTINUE

    def envrcpt(self, address, *parameters):
        if address == "<later@example.net>":
            return Milter.TEMPFAIL
        self.transaction.append(f"rcpt {address} {self.getsymval('i')}")
        return Milter.CONTINUE

    @Milter.noreply
    def data(self):
        return Milter.CONTINUE

    @Milter.noreply
    def header(self, name, value):
        self.fields.append((name, value))
        return Milter.CONTINUE

    @Milter.noreply
    def eoh(self):
        return Milter.CONTINUE

    def body(self, piece):
        self.size += len(piece)
        return Milter.SKIP if self.size > 100_000 else Milter.CONTINUE

    def eom(self):
        subject = dict(self.fields).get("Subject", "")
        for number, line in enumerate([*self.seen, *self.transaction, f"body {self.size}"]):
            self.addheader(f"X-Seen-{number}", line)
        return getattr(self, f"do_{subject}", lambda: Milter.CONTINUE)()

    def do_refuse(self):
        self.setreply("554", "5.7.1", "Virus")
        return Milter.REJECT

    def do_discard(self):
        return Milter.DISCARD

    def do_quarantine(self):
        self.quarantine("for a reason")
        return Milter.CONTINUE

    def do_change(self):
        self.progress()
        self.chgheader("X-Twice", 2, "changed\n\tand folded")
        self.chgheader("X-Twice", 1, "")
        self.addheader("X-First", "yes", 0)
        self.replacebody("new\r\n" * 50_000)
        return Milter.ACCEPT

    def do_redirect(self):
        self.delrcpt("<bob@example.net>")
        self.addrcpt("<carol@example.net>")
        return Milter.CONTINUE

    def do_sender(self):
        self.chgfrom("<other@example.org>")
        return Milter.CONTINUE


Milter.factory = Witness
Milter.set_flags(
    Milter.ADDHDRS
    | Milter.CHGHDRS
    | Milter.CHGBODY
    | Milter.ADDRCPT
    | Milter.DELRCPT
    | Milter.QUARANTINE
    | Milter.CHGFROM
)
Milter.runmilter("witness", sys.argv[1], 60)
