"""deploy/docs/clients.md, made from a run."""

import itertools
import os

from table import COLUMNS, RECIPES, ROWS, agent_title, version

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.path.join(HERE, "../../deploy/docs/clients.md")


def line(row, cells):
    """A row of the table: what passes, or which checks fail."""
    shown = []
    for way in COLUMNS:
        failed = [check for check in row.checks if cells.get((check, way))]
        shown.append("–" if way not in row.ways else "✗ " + ", ".join(failed) if failed else "✓")
    client = row.name.format(version(row.package))
    limits = "".join(f"; not {check}{f', {COLUMNS[way]}' if way else ''}: {why}" for (check, way), why in row.limits.items())
    checks = ", ".join(check for check in row.checks if (check, None) not in row.limits)
    return f"| {client} | {agent_title(row.agent)} | {checks}{limits} | {' | '.join(shown)} |"


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
        rows = [line(row, results[row]) for row in ROWS if row.section == section]
        if rows:
            text.append("\n".join([head, *rows]))
        text += [recipe_text(recipe) for recipe in RECIPES if recipe.section == section]
    return "\n\n".join(text) + "\n"


def write(results):
    with open(PATH, "w") as file:
        file.write(render(results))
