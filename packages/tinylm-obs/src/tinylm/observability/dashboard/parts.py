"""tinylm-obs · the small parts that the dashboard's views are made of: headings, cards, messages, charts, tables.

Text from files goes through these as text, never as markup. Next: `views/`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from .charts import Options


def text(tag: str, words: str, classes: str = "") -> ui.label:
    """An element that holds nothing but text."""
    label = ui.label(words).classes(classes)
    label.tag = tag
    return label


def card(title: str = "", classes: str = "tl-card") -> ui.element:
    """A bordered box, to be used with `with`."""
    box = ui.element("section").classes(classes)
    if title:
        with box:
            text("h2", title)
    return box


def empty(title: str, words: str, *commands: str) -> None:
    """Why there is nothing to see, and what to do."""
    with ui.element("div").classes("tl-empty").props("role=status"):
        text("strong", title)
        text("p", words)
        for command in commands:
            code(command)


def code(command: str) -> None:
    """A command and a button that copies it."""
    with ui.row().classes("items-center no-wrap w-full gap-2 q-my-xs"):
        text("div", command, "tl-code")
        copy = ui.button(icon="content_copy", on_click=lambda: ui.clipboard.write(command))
        copy.props('flat round dense size=sm aria-label="Copy the command"')


def chart(options: Options, label: str, height: int | None = None) -> ui.echart:
    """An ECharts chart; label: what a screen reader says of it."""
    drawn = ui.echart(_sealed(options))
    drawn.props["role"], drawn.props["aria-label"] = "img", label
    return drawn if height is None else drawn.style(f"height: {height}px")


def redraw(drawn: ui.echart, options: Options) -> None:
    """Give a chart other options."""
    drawn.options.clear()
    drawn.options.update(_sealed(options))
    drawn.update()


def _sealed(options: Options) -> Options:
    """The same JSON, with series that NiceGUI leaves as they are: it wraps every list and dictionary to see it change,
    each point of a curve too, and a tuple it does not look into."""
    return {name: tuple(value) if name == "series" else value for name, value in options.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]]) -> None:
    """A plain table; a cell is a text, or a text and its classes."""
    with ui.element("div").classes("tl-scroll"), ui.element("table").classes("tl-table"):
        with ui.element("thead"), ui.element("tr"):
            for column in columns:
                text("th", column)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for value in row:
                        text("td", *([value] if isinstance(value, str) else value))


def choice(label: str, options: Mapping[str, str], value: str, changed: Callable[[str], Any]) -> ui.select:
    """A select; `changed` gets the new key."""
    chosen = ui.select(dict(options), value=value, label=label, on_change=lambda event: changed(str(event.value)))
    chosen.props("dense outlined options-dense").classes("tl-choice")
    return chosen
