"""Tells the API pages what an option is: mkdocs.yml names this file, and griffe calls it for each attribute it reads.

A dataclass of options describes each where it stands, `seed: int = _option(0, "Machine", "Same seed, same run.")`: the
last argument is what a reader wants to know, the first the default. Not here: the pages themselves (pages.py).
"""

from typing import Any

import griffe


class Options(griffe.Extension):
    """Takes the default and the description of an attribute from its `_option(default, group, description)`."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Griffe has read an attribute."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and call.canonical_name == "_option":
            default, _, text = call.arguments
            attr.value = default
            attr.docstring = griffe.Docstring(str(text).strip("'\""), parent=attr)
