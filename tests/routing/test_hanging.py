"""Files that hang, as those of a dead file server do, keep nothing waiting but what needs them."""

import asyncio
import os
import threading

import pytest

from pillarbox.conf.model import Local, Table, TableKind
from pillarbox.tables.berkeley_writer import write_hash
from tests.routing.support import RELAY, configuration, make_lookup, recipient, table

QUESTIONS = 40  # more than there are threads of any kind
PATIENCE = 10.0  # seconds; less than any deadline


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """A folder whose files cannot be opened, nor refused, until the test ends."""
    folder, release = tmp_path / "hung", threading.Event()
    folder.mkdir()
    opened = os.open

    def hang(path, *args, **kwargs):
        if str(path).startswith(str(folder)):
            release.wait(30)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", hang)
    yield folder
    release.set()


@pytest.fixture
def lookup(tmp_path, hanging):
    """Aliases that include files that hang and one that does not, and two db tables likewise."""
    for folder in (hanging, tmp_path):
        (folder / "map.db").write_bytes(write_hash({b"key\0": b"value\0"}))
        (folder / "list").write_bytes(b"bob\n")
    aliases = table("al", ("stuck", f":include:{hanging}/list"), ("well", f":include:{tmp_path}/list"))
    tables = [
        aliases,
        Table(name="stuck", kind=TableKind.DB, config=str(hanging / "map.db")),
        Table(name="well", kind=TableKind.DB, config=str(tmp_path / "map.db")),
    ]
    action = Local(name="local", method="maildir", userbase="users", alias="al")
    made = make_lookup(configuration(actions=(action, RELAY), tables=tables))
    yield made
    made.close()


def among_hanging(lookup, question):
    """The answer to a question, while more questions hang than there are threads."""

    async def go():
        hung = [lookup.expand(recipient("stuck@example.org")) for _ in range(QUESTIONS)]
        hung += [lookup.relay_url(0, "stuck", f"{n}.example") for n in range(QUESTIONS)]
        tasks = [asyncio.ensure_future(each) for each in hung]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            answer = await question(lookup)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answer

    return asyncio.run(go())


def test_users_are_found(lookup):
    found = among_hanging(lookup, lambda lookup: lookup.user(0, "<getpwnam>", "root"))
    assert found is not None and found.uid == 0


def test_another_file_is_included(lookup):
    expansion = among_hanging(lookup, lambda lookup: lookup.expand(recipient("well@example.org")))
    assert (expansion.code, len(expansion.envelopes)) == (250, 1)


def test_another_db_table_answers(lookup):
    assert among_hanging(lookup, lambda lookup: lookup.relay_url(0, "well", "key")) == "value"
