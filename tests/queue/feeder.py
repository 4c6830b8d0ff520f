"""Stores mail as fast as it can and prints what was acknowledged, to be killed: `feeder.py FOLDER SEED`."""

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from pillarbox.errors import TempFail
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.store import StoredMessage
from tests.queue.rig import make_envelope
from tests.queue.test_store import message

SIZES = (10, 3000, 30_000, 40_000, 300_000)


def body_of(msgid: int) -> bytes:
    return random.Random(msgid).randbytes(SIZES[msgid % len(SIZES)])


async def feed(folder: Path, seed: int) -> None:
    store = SqliteStore(folder, monotonic=time.monotonic, on_fatal=lambda error: os._exit(3))
    ids = iter(range(seed, 2**31))

    async def caller() -> None:
        for msgid in ids:
            body = body_of(msgid)
            new = message(msgid, make_envelope(msgid), make_envelope(msgid), body=body)
            try:
                if len(body) > 100_000:
                    for offset in range(0, len(body), 65536):
                        await store.append(msgid, offset, body[offset : offset + 65536])
                    new = StoredMessage(msgid=msgid, size=len(body), streamed=True, envelopes=new.envelopes)
                await store.commit(new)
            except TempFail as error:
                print("refused", error, flush=True)
                return
            os.write(1, f"{msgid}\n".encode())

    await asyncio.gather(*(caller() for _ in range(8)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(feed(Path(sys.argv[1]), int(sys.argv[2])))
