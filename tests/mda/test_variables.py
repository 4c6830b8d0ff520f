import pytest

from pillarbox.mda.variables import BadFormat, Facts, expand

FACTS = Facts(
    sender="Send.Er+x@Client.Example.NET",
    rcpt="Alice+Tag@T0.Example.ORG",
    dest="Alice+Tag@T1.Example.ORG",
    username="alice",
    directory="/home/a lice",
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("%{sender}", "Send.Er+x@Client.Example.NET"),
        ("%{sender.user}", "Send.Er+x"),
        ("%{sender.domain}", "Client.Example.NET"),
        ("%{SENDER} %{Rcpt.User} %{user.USERNAME}", "Send.Er+x@Client.Example.NET Alice+Tag alice"),
        ("%{dest.domain:lowercase}", "t1.example.org"),
        ("%{sender:UpperCase}", "SEND.ER+X@CLIENT.EXAMPLE.NET"),
        ("%{sender:strip|lowercase}", "send.er@client.example.net"),
        ("%{rcpt.user:strip}", "Alice"),
        ("%{mbox.from}", "Send.Er+x@Client.Example.NET"),
        ("%{user.directory}/x", "/home/a lice/x"),
        ("~/x", "/home/a lice/x"),
        ("a~/x", "a~/x"),
        ("100%% %%{sender} %x", "100% %{sender} %x"),
        ("%{rcpt.user[0]}", "A"),
        ("%{rcpt.user[0:2]}", "Ali"),
        ("%{rcpt.user[:2]}", "Ali"),
        ("%{rcpt.user[2:]}", "ice+Tag"),
        ("%{rcpt.user[-3:]}", "Tag"),
        ("%{rcpt.user[:-2]}", "Alice+T"),
        ("%{rcpt.user[1:100]}", "lice+Tag"),
        ("%{rcpt.user[-2:-1]}", "a"),
    ],
)
def test_specifier_has_its_value(template, expected):
    assert expand(template, FACTS) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "nosuch", "rcpt[", "rcpt[a]", "rcpt.user[3:1]", "rcpt]2[", "rcpt.user[5000]", "rcpt.user[9]", "rcpt:",
        "rcpt .user", "rcpt.user[-1]", "rcpt[]", "rcpt.user[0:2]:uppercase", "rcpt:nosuch", "mda", "", "sender.nosuch",
    ],
)  # fmt: skip
def test_bad_specifier_is_refused(spec):
    with pytest.raises(BadFormat):
        expand(f"x %{{{spec}}}", FACTS)


@pytest.mark.parametrize("template", ["[%{sender]", "%{" + "a" * 128 + "} %{rcpt}"])
def test_unterminated_or_overlong_specifier_leaves_the_text_alone(template):
    assert expand(template, FACTS) == template


def test_unsafe_characters_become_colons_unless_raw():
    facts = Facts("a!b#c$d%e&f'g*h?i`j{k|l}m~n@x.example", "", "", "u", "/$HOME")
    assert expand("%{sender}", facts) == "a:b:c:d:e:f:g:h:i:j:k:l:m:n@x.example"
    assert expand("%{sender:raw}", facts) == facts.sender
    assert expand("%{user.directory}", facts) == "/$HOME"


def test_null_sender_is_empty_but_has_a_mailbox_name():
    facts = Facts("", "a@b", "a@b", "a", "/")
    assert expand("[%{sender}%{sender.user}%{sender[3]}] %{mbox.from}", facts) == "[] MAILER-DAEMON"
