"""The canonical form parses to the configuration that it was written from."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.conf.build import load_config
from pillarbox.conf.format import CannotWrite, format_config, format_size, format_time, quote, quoted
from pillarbox.conf.lexer import Lexer
from pillarbox.conf.model import Config
from pillarbox.conf.uses import normal
from pillarbox.conf.values import parse_delay, parse_size
from tests.conf.models import FILES, configs

thorough = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def load(text: str) -> Config:
    known = {"smtpd.conf": text, **FILES}

    def read(path: str) -> str:
        if path not in known:
            raise FileNotFoundError(2, "No such file or directory", path)
        return known[path]

    return load_config(file="smtpd.conf", read=read, macros={}, hostname="mx.example.org", checker=None)


@thorough
@given(configs())
def test_what_is_written_parses_to_the_same_configuration(config: Config) -> None:
    text = format_config(config)
    again = load(text)
    assert normal(again) == normal(config)
    assert format_config(again) == text


@thorough
@given(st.text(max_size=30))
def test_a_quoted_string_is_lexed_to_itself_or_cannot_be_written(text: str) -> None:
    for write in (quote, quoted):
        try:
            written = write(text)
        except CannotWrite:
            assert "\n" in text or "\0" in text or text.endswith("\\")
            continue
        lexer = Lexer(name="", text=f"{written} next", macros={})
        token = lexer.token()
        assert (token.type, str(token)) == ("STRING", text)
        assert lexer.token() == "next"


@thorough
@given(st.integers(1, (1 << 31) - 1), st.integers(0, (1 << 63) - 1))
def test_times_and_sizes_stay_what_they_are(seconds: int, size: int) -> None:
    assert parse_delay(format_time(seconds)) == seconds
    assert parse_size(format_size(size)) == size
