"""deploy/docs/clients.md, made from a run."""

import itertools
import os

from table import COLUMNS, LIMITS, RECIPES, ROWS, agent_title, version

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.path.join(HERE, "../../deploy/docs/clients.md")
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def mark(limit):
    return str(LIMITS.index(limit) + 1).translate(SUPERSCRIPTS)


def footnotes(rows):
    """What the marks in the table of these rows mean."""
    used = [limit for limit in LIMITS if any(limit.client == row.name for row in rows)]
    return "  \n".join(f"{mark(limit)} Except `{limit.check}`, because of the client itself: {limit.why}." for limit in used)


def line(row, cells):
    """A row of the table: what passes, which checks fail, and which the client itself cannot pass."""
    shown = []
    for way in COLUMNS:
        failed = [check for check in row.checks if cells.get((check, way))]
        marks = "".join(f" {mark(limit)}" for check in row.checks if (limit := row.limit(check, way)))
        shown.append("–" if way not in row.ways else ("✗ " + ", ".join(failed) if failed else "✓") + marks)
    client = row.name.format(version(row.package))
    return f"| {client} | {agent_title(row.agent)} | {', '.join(row.checks)} | {' | '.join(shown)} |"


def recipe_text(recipe):
    with open(f"{HERE}/recipes/{recipe.file}") as file:
        text = file.read().strip()
    language = {"py": "python", "mjs": "js", "sh": "sh"}[recipe.file.rpartition(".")[2]]
    # The comment at its beginning becomes the text before it.
    lines = text.splitlines()
    said = list(itertools.takewhile(lambda line: line.startswith(("#", "//")), lines))
    return "\n".join([*(line.lstrip("#/ ") for line in said), "", f"```{language}", *lines[len(said):], "```"])


def parts(results):
    """The document's parts that a run decides, each under what it is called when it differs."""
    shown = {}
    for row, cells in results.items():
        if row in RECIPES:
            shown[row.title] = recipe_text(row)
        else:
            shown[f"{row.section}, {row.title}"] = line(row, cells)
    return shown


def differences(results, whole):
    if not os.path.exists(PATH):
        return ["it does not exist"]
    with open(PATH) as file:
        text = file.read()
    missing = [f"{name}: {part.splitlines()[0]}" for name, part in parts(results).items() if part not in text]
    if not missing and whole and text != render(results):
        return ["it has more, or a different order"]
    return missing


def render(results):
    with open(f"{HERE}/clients.md.in") as file:
        intro = file.read()
    text = [intro.strip()]
    sections = list(dict.fromkeys(each.section for each in [*ROWS, *RECIPES]))
    head = f"| Client | Agent | Checks | {' | '.join(COLUMNS.values())} |\n|---|---|---|{'---|' * len(COLUMNS)}"
    for section in sections:
        text.append(f"## {section}")
        rows = [row for row in ROWS if row.section == section]
        if rows:
            text.append("\n".join([head, *(line(row, results[row]) for row in rows)]))
            text += filter(None, [footnotes(rows)])
        text += [recipe_text(recipe) for recipe in RECIPES if recipe.section == section]
    return "\n\n".join(text) + "\n"


def write(results):
    with open(PATH, "w") as file:
        file.write(render(results))
