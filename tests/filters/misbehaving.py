"""A processor that does what its arguments say: a mode for each start, the last one from then on, and a file that
counts starts. Run as a child; no part of the package is imported."""

import os
import signal
import sys
import time


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def greet(*registrations):
    for line in sys.stdin:
        if line == "config|ready\n":
            break
    for registration in registrations or ("filter|smtp-in|*", "report|smtp-in|*"):
        say(f"register|{registration}")
    say("register|ready")


def fields():
    """The fields of each line; param is the last."""
    for line in sys.stdin:
        yield line.rstrip("\n").split("|", 7)


def answer(field, decision="proceed"):
    if field[0] != "filter":
        return
    _, _, _, _, phase, session, token, param = field
    if phase == "data-line":
        say(f"filter-dataline|{session}|{token}|{param}")
    else:
        say(f"filter-result|{session}|{token}|{decision}")


def serve():
    for field in fields():
        answer(field)


def good():
    greet()
    serve()


def polite():
    """Says so when its input ends."""
    good()
    time.sleep(0.3)
    sys.stderr.write("end of input\n")


def listens():
    """Only hears events, which it repeats on standard error."""
    greet("report|smtp-in|tx-mail", "report|smtp-in|link-connect", "report|mda|*")
    for line in sys.stdin:
        sys.stderr.write(line)
        sys.stderr.flush()


def ends():
    """Is asked, and hears only of ends, which it repeats on standard error."""
    greet("filter|smtp-in|mail-from", "report|smtp-in|link-disconnect", "report|smtp-out|link-disconnect")
    for field in fields():
        answer(field)
        if field[0] == "report":
            sys.stderr.write("over: " + "|".join(field[3:]) + "\n")
            sys.stderr.flush()


def bare():
    """What the simplest processor is: a loop that reads, and no handshake."""
    for line in sys.stdin:
        if line.startswith("report|"):
            sys.stderr.write(line)
            sys.stderr.flush()


def old():
    greet("protocol|0.4", "filter|smtp-in|helo", "report|smtp-in|tx-mail")
    for field in fields():
        sys.stderr.write("|".join(field) + "\n")
        sys.stderr.flush()
        if field[0] == "filter":
            say(f"filter-result|{field[6]}|{field[5]}|proceed")


def backwards():
    """Answers three questions at a time, the last one first."""
    greet()
    held = []
    for field in fields():
        if field[0] == "filter":
            held.append(field)
        if len(held) == 3:
            while held:
                answer(held.pop())


def silent():
    """Never registers."""
    time.sleep(600)


def slow():
    """Takes its time to register."""
    time.sleep(3)
    good()


def dies_at_once():
    sys.exit(3)


def dies_when_ready():
    greet()
    sys.exit(4)


def dies():
    """Ends with the first question."""
    greet()
    for field in fields():
        if field[0] == "filter":
            os._exit(7)


def garbage():
    greet()
    for field in fields():
        if field[0] == "filter":
            say("what is this?")


def garbage_when_greeted():
    greet("filter|smtp-out|connect")
    serve()


def bad_token():
    greet()
    for field in fields():
        if field[0] == "filter":
            say(f"filter-result|{field[5]}|0123456789abcdef|proceed")


def strangers():
    """Answers about sessions that nobody knows, and then properly."""
    greet()
    for field in fields():
        say("filter-result|0123456789abcdef|0123456789abcdef|proceed")
        say("filter-dataline|0123456789abcdef|0123456789abcdef|x")
        answer(field)


def twice():
    greet()
    for field in fields():
        answer(field)
        answer(field, "junk")


def wrong_kind():
    """Answers a question with a line of a message."""
    greet()
    for field in fields():
        if field[0] == "filter":
            say(f"filter-dataline|{field[5]}|{field[6]}|x")


def junk_at_commit():
    greet()
    for field in fields():
        answer(field, "junk")


def leaves_out():
    """Never answers HELO, but everything else."""
    greet()
    for field in fields():
        if field[0] == "filter" and field[4] != "helo":
            answer(field)


def unfinished():
    """Never finishes a line."""
    greet()
    for field in fields():
        if field[0] == "filter":
            sys.stdout.write(f"filter-result|{field[5]}|{field[6]}|proc")
            sys.stdout.flush()


def no_answer():
    greet()
    for _ in fields():
        pass


def echoes():
    """Answers each report that any filter makes with one of its own, and says how many it has heard."""
    greet("filter|smtp-in|noop", "report|smtp-in|link-connect", "report|smtp-in|filter-report")
    heard = 0
    for field in fields():
        if field[0] == "filter":
            say(f"filter-result|{field[5]}|{field[6]}|reject|550 {heard}")
            continue
        heard += field[4] == "filter-report"
        say(f"report|1576146008.006099|smtp-in|{field[5]}|and another")


def slowly():
    """Gives messages back, one line at a time."""
    greet()
    for field in fields():
        answer(field)
        if field[4] == "data-line":
            time.sleep(0.4)


def flood():
    """Writes without end, without an end of line."""
    greet()
    while True:
        os.write(1, b"x" * 65536)


def flood_of_lines():
    greet()
    while True:
        os.write(1, b"filter-result|0000000000000001|0000000000000001|proceed\n" * 1000)


def flood_of_message():
    """Makes a message that does not end."""
    greet()
    for field in fields():
        if field[0] == "filter":
            while True:
                os.write(1, f"filter-dataline|{field[5]}|{field[6]}|{'x' * 900}\n".encode() * 100)


def flood_of_reports():
    greet()
    for field in fields():
        while True:
            os.write(1, f"report|1576146008.006099|smtp-in|{field[5]}|x\n".encode() * 100)


def flood_of_errors():
    greet()
    for field in fields():
        sys.stderr.write("x" * 60 + "\n")
        sys.stderr.flush()
        answer(field)


def stops():
    """SIGSTOP with the first question."""
    greet()
    for field in fields():
        if field[0] == "filter":
            os.kill(os.getpid(), signal.SIGSTOP)


def deaf():
    """Does not read any more, and does not end either."""
    greet()
    time.sleep(600)


def deaf_listener():
    greet("report|smtp-in|*")
    time.sleep(600)


def stubborn():
    """Ignores that it should end."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    good()
    time.sleep(600)


def main():
    modes, counter = sys.argv[1].split(","), sys.argv[2]
    with open(counter, "ab+") as file:
        file.write(b".")
        count = file.tell()
    globals()[modes[min(count, len(modes)) - 1]]()


if __name__ == "__main__":
    main()
