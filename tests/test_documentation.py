"""What the pages say of commands, options, settings, recipes and other pages is so."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import cli
from agent.settings import isolated_settings
from rl.recipe import shipped

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
AGENT = typer.main.get_command(cli.app)


def examples():
    """Page and code of each example."""
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            yield pytest.param(code, id=page.name)


@pytest.mark.parametrize("code", list(examples()))
def test_an_example_imports_what_there_is(code):
    named = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert named
    for node in named:
        module = importlib.import_module(node.module)
        assert [one.name for one in node.names if not hasattr(module, one.name)] == []


def commands(page):
    """Command lines of a page, in its text and in its blocks."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    inline = re.findall(r"(?<!`)`(agent [^`]*)`(?!`)", text)
    return inline + re.findall(r"^(?:\$ )?(agent [a-z].*?)(?:  .*)?$", text, re.MULTILINE)


def unknown(line):
    """What of a command line there is not: a command or an option."""
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:  # the sentence goes on: an apostrophe
        return []
    command = AGENT
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if command.name == "eval":
        command = command.commands["run"]
    if hasattr(command, "commands"):
        return [word for word in words[:1] if word.isalpha() and word.islower()]
    known = {one for option in command.params for one in (*option.opts, *option.secondary_opts)}
    given = [re.split(r"[=.,;:]", word)[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in given if option not in known | {"--help"}]


NOT_YET = {"agent serve"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_and_options_that_there_are(page):
    lines = [line for line in commands(page) if line not in NOT_YET]
    assert {line: wrong for line in lines if (wrong := unknown(line))} == {}


def slug(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert link.startswith("http") or target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_the_settings_are_told_with_their_defaults():
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    [block] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    defaults = isolated_settings().model_dump(mode="json")
    assert tomllib.loads(block) == {k: v for k, v in defaults.items() if v is not None}
    assert {key for key, value in defaults.items() if value is None} == {"home", "api_key"}


def test_every_recipe_and_every_command_is_on_its_page():
    recipes = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert [
        name for name in shipped() if not re.search(rf"^\|.*`.*\b{name}\b", recipes, re.M)
    ] == []
    table = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, command in AGENT.commands.items():
        for one in getattr(command, "commands", {name: None}):
            assert re.search(rf"^\| `.*\b{one}\b.*\|", table, re.MULTILINE), f"{name} {one}"
