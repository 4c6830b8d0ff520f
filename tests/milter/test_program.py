"""`filter-milter` beside a milter that follows a script: what it says to whom, and what becomes of mail."""

from pathlib import Path

from tests.milter.driver import MESSAGE, PROCEED, Bridge
from tests.milter.scripted import ScriptedMilter


def test_a_message_goes_through_unchanged_and_the_milter_hears_all_of_it(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.deliver() == (list(MESSAGE), PROCEED)
        client.quit()
        assert bridge.end() == 0
        assert milter.hears("CHMRTLLLLNBEQ") == "CHMRTLLLLNBEQ"
        heard = milter.last
        assert heard.said("C") == [[b"client.example.net", b"4\x12g192.0.2.1"]]
        assert heard.said("H") == [[b"client.example.net"]]
        assert heard.said("M") == [[b"<alice@example.org>"]]
        assert heard.said("R") == [[b"<bob@example.net>"]]
        assert heard.said("L")[2] == [b"Subject", b"greetings"]
        assert heard.body() == b"Hello Bob,\r\n.a line with a dot\r\nAlice\r\n"
        assert bridge.log() == ""
