"""Commands for /bin/sh into which values of an envelope cannot be parsed.

The text of a command is written by the postmaster (smtpd.conf) or by its user (`.forward`), and is shell code: pipes,
redirections and quotes work as they always did. What `%{...}` stands for comes from a client. So a value never
becomes part of the text: it is an argument of the shell, which a first line assigns to a variable, and at the
specifier's place stands a reference to that variable, quoted for the place: `"${pb1}"` is expanded after parsing and
is never parsed again, whatever it contains. The text is followed character by character to know the quoting there
(`Quoting`); if that is ever misjudged, a value may come out split or unexpanded, but never as code.

* unquoted: `${pb1:+"$pb1"}`, one word, or none where the value is empty, as if it stood there;
* in double quotes: `${pb1}`; in single quotes: `'"${pb1}"'`.

Two shells. The reference runs an action's command as `sh -c 'mail.mda "COMMAND"'`, so `\\$HOME` or `"` in it passed
through double quotes first. Where the text has a character for which that matters, it passes through two shells
here too, and references are escaped so that only the second one expands them.

Shell code in a word of its own (`sh -c '… %{rcpt} …'`, `eval`) is parsed once more by a program that is not ours: a
value there has every character replaced that a shell might obey, even if `:raw` was asked for.

A wrapper's `%{mda}` is code: unquoted it is spliced in, in quotes it is handed over as text, and the references in it
travel as exported variables, so that the shell that finally runs it expands them.
"""

import re
from dataclasses import dataclass, field

from pillarbox.mda.variables import Value

SHELL = "/bin/sh"
_CODE_OPTION = re.compile(r"-[A-Za-z]*c\Z")
_MATTERS_IN_DOUBLE_QUOTES = re.compile(r"[\\\"$`]")
_NOT_INERT = re.compile(r"[^\w@.+=/:,-]")  # in no shell do the others stand for more than themselves
_ONE_COMMAND = "[ $# = 1 ] || { echo 'mail.mda: only one command is supported' >&2; exit 1; }"


class Quoting:
    """Where in shell text we are: fed characters, it says which quotes are open and what the shell makes of them."""

    def __init__(self) -> None:
        self._open: list[str] = []  # ' " ` or (
        self._escaped = False
        self._dollar = False
        self._word = ""
        self._previous = ""
        self._command = ""

    @property
    def quote(self) -> str:
        """The quote that is open here: `'`, `"`, or "" (also within a substitution)."""
        top = self._open[-1] if self._open else ""
        return top if top in ("'", '"') else ""

    @property
    def is_code(self) -> bool:
        """This word is shell code for another shell."""
        return bool(_CODE_OPTION.match(self._previous)) or self._command == "eval"

    def feed(self, text: str) -> str:
        """Go over text; returns what is left of it once this shell has removed its quotes."""
        return "".join(self._step(c) for c in text)

    def _step(self, c: str) -> str:
        dollar, self._dollar = self._dollar, False
        if self._escaped:
            self._escaped = False
            kept = self.quote == '"' and c not in '\\"$`\n'
            return self._literal("\\" + c if kept else "" if c == "\n" else c)
        quote = self.quote
        if quote == "'":
            return self._close() if c == "'" else self._literal(c)
        if c == "\\":
            self._escaped = True
            return ""
        top = self._open[-1] if self._open else ""
        if c == top or (c == ")" and top == "("):
            return self._close()
        if c in '"`' or (c == "'" and not quote) or (c == "(" and dollar):
            self._open.append(c)
            return ""
        self._dollar = c == "$"
        if not quote and c in " \t\n;|&()<>":
            self._end_word(c)
            return c
        return "" if c == "$" else self._literal(c)

    def _close(self) -> str:
        self._open.pop()
        return ""

    def _literal(self, text: str) -> str:
        self._word += text
        return text

    def _end_word(self, c: str) -> None:
        if self._word:
            self._command = self._command or self._word
            self._previous = self._word
            self._word = ""
        if c not in " \t<>":
            self._previous = self._command = ""


@dataclass(slots=True)
class _Values:
    """The values referred to, in the order of the shell's arguments."""

    texts: list[str] = field(default_factory=list)
    exported: bool = False

    def name(self, text: str) -> str:
        self.texts.append(text)
        return f"pb{len(self.texts)}"


def build_argv(
    parts: list[str | Value], *, through_two_shells: bool = False, wrapper: list[str | Value] | None = None
) -> list[str]:
    """The argument list that runs a command. `parts`: from `expand_parts`; `wrapper`: the same of a wrapper around it.

    `through_two_shells`: the text is an action's `mda` command (see above); a command of `.forward` never is.
    """
    values = _Values()
    literal = "".join(p for p in parts if isinstance(p, str))
    doubled = through_two_shells and bool(_MATTERS_IN_DOUBLE_QUOTES.search(literal))
    if doubled:
        text = f'set -- "{_write(parts, values, nested=True)}"; {_ONE_COMMAND}; exec {SHELL} -c "$1"'
        values.exported = True
    else:
        text = _write(parts, values)
    if wrapper is not None:
        # An action's command is one argument of a program there too: `nice %{mda}` means all of `a | b`.
        code = f"{SHELL} -c {_single_quoted(text)}" if through_two_shells else text
        values.exported = True
        text = _write(wrapper, values, mda=code)
    return [SHELL, "-c", _prologue(values) + text, "sh", *values.texts]


def _prologue(values: _Values) -> str:
    count = len(values.texts)
    if not count:
        return ""
    text = " ".join(f"pb{n}=${{{n}}}" for n in range(1, count + 1)) + f"; shift {count}; "
    if values.exported:
        text += "export " + " ".join(f"pb{n}" for n in range(1, count + 1)) + "; "
    return text


def _write(parts: list[str | Value], values: _Values, *, nested: bool = False, mda: str = "") -> str:
    """Shell text with references in place of values. `nested`: it will stand in double quotes of an outer shell."""
    outer, inner = Quoting(), Quoting()
    if nested:
        outer.feed('"')
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            inner.feed(outer.feed(part) if nested else part)
        elif part.is_command and not inner.quote:
            text += mda
        else:
            value = mda if part.is_command else part.text
            if inner.is_code and not part.trusted:
                value = _NOT_INERT.sub(":", value)
            reference = _reference(values.name(value), inner.quote)
            text += _escape(reference, outer.quote) if nested else reference
    return text


def _reference(name: str, quote: str) -> str:
    if quote == '"':
        return f"${{{name}}}"
    if quote == "'":
        return f"'\"${{{name}}}\"'"
    return f'${{{name}:+"${name}"}}'


def _escape(text: str, quote: str) -> str:
    """So that a shell in whose quotes it stands leaves `text` as it is."""
    if quote == "'":
        return text.replace("'", "'\\''")
    special = '\\$"`' if quote == '"' else "\\$\"`'{}"
    return "".join("\\" + c if c in special else c for c in text)


def _single_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
