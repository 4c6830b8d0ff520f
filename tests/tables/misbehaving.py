"""A table program that does what its argument says. Run as a child; no part of the package is imported."""

import os
import signal
import sys
import time


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def greet(*services):
    for line in sys.stdin:
        if line == "config|ready\n":
            break
    for service in services or ("alias", "string"):
        say(f"register|{service}")
    say("register|ready")


def requests():
    """(op, id, key) of each request."""
    for line in sys.stdin:
        fields = line.rstrip("\n").split("|", 7)
        if fields[4] == "update":
            yield "update", fields[5], ""
        else:
            yield fields[4], fields[6], fields[7] if len(fields) > 7 else ""


def answer(op, id_, key):
    if op == "update":
        say(f"update-result|{id_}|ok")
    elif key == "none":
        say(f"{op}-result|{id_}|not-found")
    elif key == "error":
        say(f"{op}-result|{id_}|error|out of order")
    else:
        say(f"{op}-result|{id_}|found" + ("" if op == "check" else f"|value of {key}"))


def serve():
    for op, id_, key in requests():
        answer(op, id_, key)


def good():
    greet()
    serve()


def polite():
    """Says so when its input ends."""
    good()
    sys.stderr.write("end of input\n")


def auth():
    greet("auth", "credentials")
    for op, id_, key in requests():
        say(f"{op}-result|{id_}|{'found' if key == 'alice:Secret PW' else 'not-found'}")


def backwards():
    """Answers three questions at a time, the last one first."""
    greet()
    held = []
    for request in requests():
        held.append(request)
        if len(held) == 3:
            while held:
                answer(*held.pop())


def silent():
    """Never registers."""
    time.sleep(600)


def dies_at_once():
    sys.exit(3)


def dies():
    """Ends with the first question."""
    greet()
    next(requests())
    os._exit(7)


def garbage():
    greet()
    next(requests())
    say("what is this?")
    serve()


def unknown_id():
    greet()
    for op, id_, key in requests():
        answer(op, id_, key)
        answer(op, "ffffffff", key)


def unfinished():
    """Never finishes a line."""
    greet()
    for op, id_, _key in requests():
        sys.stdout.write(f"{op}-result|{id_}|found")
        sys.stdout.flush()


def flood():
    """Writes without end, without an end of line."""
    greet()
    next(requests())
    while True:
        os.write(1, b"x" * 65536)


def flood_of_lines():
    greet()
    next(requests())
    while True:
        os.write(1, b"lookup-result|00000000|not-found\n" * 1000)


def stops():
    """SIGSTOP with the first question."""
    greet()
    next(requests())
    os.kill(os.getpid(), signal.SIGSTOP)
    serve()


def deaf():
    """Does not read any more, and does not end either."""
    greet()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def forgets():
    """Leaves every question for "lost" unanswered."""
    greet()
    for op, id_, key in requests():
        if key != "lost":
            answer(op, id_, key)


def late():
    """Takes a second for "late", and answers it then."""
    greet()
    held = []
    for op, id_, key in requests():
        if key == "late":
            held.append((op, id_, key))
        else:
            answer(op, id_, key)
            for request in held:
                answer(*request)
            held.clear()


def stays():
    """Ignores the end of its input, and starts a child that does, too."""
    greet()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        time.sleep(600)
    sys.stderr.write(f"child {child}\n")
    sys.stderr.flush()
    while True:
        sys.stdin.readline()
        time.sleep(0.05)


def talks():
    """Says much on its standard error, and works nevertheless."""
    sys.stderr.write("starting\nsecond\x1b[31m line\n" + "long" * 1000 + "\n")
    sys.stderr.write("".join(f"number {n}\n" for n in range(5000)))
    sys.stderr.write("no end of line")
    sys.stderr.flush()
    good()


def shows():
    """Tells what it was started with."""
    lines = [f"{name}={value}" for name, value in sorted(os.environ.items())]
    lines += [f"argv {sys.argv[1:]}", f"cwd {os.getcwd()}", f"ids {os.getresuid()} {os.getresgid()} {os.getgroups()}"]
    lines += [f"group {os.getpgrp() == os.getpid()}", f"session {os.getsid(0) == os.getpid()}"]
    lines += [f"fds {sorted(map(int, os.listdir('/proc/self/fd')))[:-1]}"]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    good()


globals()[sys.argv[1]]()
