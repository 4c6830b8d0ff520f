"""The filter that `bench/filters.py` measures: it is asked about every line of every message, and changes none."""

from types import SimpleNamespace

from pillarbox.sdk.filter import Filter, Session

passing = Filter()


@passing.on.data_line
def line(session: Session[SimpleNamespace], line: str) -> str:
    return line


if __name__ == "__main__":
    passing.run()
