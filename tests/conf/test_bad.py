"""Every file in bad/ is refused with exactly the problems that stand beside it."""

from pathlib import Path

import pytest

from pillarbox.conf.build import load_config
from pillarbox.errors import ConfigError

BAD = Path(__file__).parent / "bad"


def read_beside(path: str) -> str:
    return (BAD / path).read_bytes().decode()  # as it is: a CR is part of it


@pytest.mark.parametrize("file", sorted(p.name for p in BAD.glob("*.conf")))
def test_is_refused_as_expected(file: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, read=read_beside, macros={}, hostname="mx.example.org", checker=None)
    expected = (BAD / file).with_suffix(".expected").read_text()
    assert str(caught.value) + "\n" == expected
