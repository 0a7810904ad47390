"""Foreign text on a terminal."""

from kg.console import stderr, stdout
from kg.plain_text import printable


def test_control_characters_go_and_text_stays():
    assert printable("a\x1b[2Jb\x07\x9dc\n\té漢") == "a\ufffd[2Jb\ufffd\ufffdc\n\té漢"


def test_nothing_turns_the_order_of_reading_around():
    turned = printable("paid \u202e001\u202c \u2066x\u2069")
    assert turned == "paid \ufffd001\ufffd \ufffdx\ufffd"
    assert printable("שלום \u200f!") == "שלום \u200f!"


def test_what_commands_print_does_not_act_on_a_terminal(capsys):
    stderr("skipped: \x1b]0;title\x07")
    stdout("answer \x1b[2J")
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "answer" in told.out
    assert "title" in told.err
