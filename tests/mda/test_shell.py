"""Commands are run by the real shell: what counts is what it makes of them."""

import subprocess

import pytest

from pillarbox.mda.shell import build_argv
from pillarbox.mda.variables import Facts, expand_parts

ARGS = """python3 -c 'import sys; print(sys.argv[1:])'"""
EVIL = [
    "a$(touch PWNED)@x",
    "a`touch PWNED`@x",
    "a';touch PWNED;'@x",
    'a";touch PWNED;"@x',
    "a|touch PWNED@x",
    "a\ntouch PWNED\n@x",
    "a;touch PWNED #@x",
    "$'a\\';touch PWNED;'@x",
    "-a \\\"'@x",
    "a&touch PWNED&@x",
]


def run(tmp_path, command, sender="s@client.example.net", *, two=True, wrapper=None):
    facts = Facts(sender, "alice@example.org", "alice@example.org", "alice", "/home/alice")
    wrapped = expand_parts(wrapper, Facts(sender, "", "", "alice", "/", mda="")) if wrapper else None
    argv = build_argv(expand_parts(command, facts), through_two_shells=two, wrapper=wrapped)
    env = {"PATH": "/usr/bin:/bin", "HOME": "/home/alice"}
    return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20, check=False)


def test_quoting_is_that_of_two_shells(tmp_path):
    command = f"""{ARGS} 'a b' %{{sender}} "%{{rcpt}}" $HOME \\\\$HOME"""
    expected = "['a b', 's@client.example.net', 'alice@example.org', '/home/alice', '/home/alice']\n"
    assert run(tmp_path, command).stdout == expected


def test_command_of_forward_is_read_by_one_shell(tmp_path):
    assert run(tmp_path, f"""{ARGS} "a b" '%{{rcpt}}' \\$HOME""", two=False).stdout == (
        "['a b', 'alice@example.org', '$HOME']\n"
    )


def test_pipes_and_redirections_work(tmp_path):
    assert run(tmp_path, "echo '[%{rcpt}]' | tr a-z A-Z > out; cat out").stdout == "[ALICE@EXAMPLE.ORG]\n"


def test_empty_value_is_no_argument(tmp_path):
    assert run(tmp_path, f"{ARGS} -f %{{sender}} x%{{sender}}y '%{{sender}}'", sender="").stdout == "['-f', 'xy', '']\n"


def test_arguments_of_the_shell_are_the_commands_own(tmp_path):
    assert run(tmp_path, "echo $# %{rcpt}; set -- a b; echo $2 %{rcpt}", two=False).stdout == (
        "0 alice@example.org\nb alice@example.org\n"
    )


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("sender", EVIL)
def test_raw_value_comes_out_as_it_is_and_is_never_code(tmp_path, sender, two):
    command = f'{ARGS} %{{sender:raw}} \'[%{{sender:raw}}]\' "$(printf %s "%{{sender:raw}}")"'
    got = run(tmp_path, command, sender, two=two)
    if not two:
        assert got.stdout == f"{[sender, f'[{sender}]', sender]!r}\n"
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("sender", EVIL)
@pytest.mark.parametrize(
    "command",
    [
        "sh -c 'echo %{sender:raw}'",
        'sh -c "echo %{sender:raw}"',
        "sh -c 'echo \"%{sender:raw}\"'",
        "sh -ec 'echo '%{sender:raw}",
        "eval 'echo %{sender:raw}'",
        "true; eval echo %{sender:raw}",
        'echo `echo %{sender:raw}` "`echo %{sender:raw}`"',
        "echo $(echo '%{sender:raw}') ${HOME:-%{sender:raw}}",
        "echo '%{sender:raw} \"%{sender:raw}\" \\'%{sender:raw}",
    ],
)
@pytest.mark.parametrize("two", [False, True])
def test_value_in_nested_code_is_never_code(tmp_path, command, sender, two):
    run(tmp_path, command, sender, two=two)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("sender", EVIL)
@pytest.mark.parametrize("wrapper", ["nice %{mda}", "sh -c 'echo %{mda}; exec %{mda}'", 'sh -c "exec %{mda}"'])
@pytest.mark.parametrize("two", [False, True])
def test_wrapper_runs_the_command_with_its_values(tmp_path, wrapper, sender, two):
    got = run(tmp_path, "printf [%%s] %{sender:raw}", sender, two=two, wrapper=wrapper)
    assert got.stdout.endswith(f"[{sender}]")
    assert not (tmp_path / "PWNED").exists()


def test_wrapper_takes_a_whole_pipeline(tmp_path):
    got = run(tmp_path, "echo %{rcpt} | tr a-z A-Z", wrapper="env W=1 sh -c 'exec %{mda}'")
    assert got.stdout == "ALICE@EXAMPLE.ORG\n"


def test_text_that_falls_apart_is_refused_as_the_reference_does(tmp_path):
    got = run(tmp_path, 'echo "a b"')
    assert (got.returncode, got.stderr) == (1, "mail.mda: only one command is supported\n")
