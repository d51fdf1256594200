"""A written page, taken apart without a browser."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np


class Page(HTMLParser):
    """The elements, scripts and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.scripts, self.shown = text, [], [], []
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = (dict(attrs) if tag == "script" else None, [])

    def handle_endtag(self, tag):
        if tag in ("script", "style") and self._script is not None:
            attributes, parts = self._script
            if attributes is not None:
                self.scripts.append((attributes, "".join(parts)))
            self._script = None

    def handle_data(self, data):
        (self.shown if self._script is None else self._script[1]).append(data)

    @property
    def words(self):
        """All text that is shown, in one line."""
        return " ".join(" ".join(self.shown).split())

    def data(self, name="data"):
        """The values that scripts read."""
        return next(json.loads(text) for found, text in self.scripts if found.get("id") == name)

    def run(self):
        """The scripts that run."""
        return [text for found, text in self.scripts if found.get("type") != "application/json"]

    def policy(self):
        """The content security policy, by directive."""
        content = next(
            found["content"]
            for tag, found in self.elements
            if found.get("http-equiv") == "Content-Security-Policy"
        )
        return {part.split()[0]: part.split()[1:] for part in content.split(";")}

    def lists(self, name):
        """Return item places, distances and marks of each query's list."""
        packed = self.data()[name]
        kinds = {"start": "<i4", "item": "<i4", "distance": "<f4", "mark": "u1", "elsewhere": "u1"}
        columns = {
            key: np.frombuffer(base64.b64decode(packed[key]), kind) for key, kind in kinds.items()
        }
        cut = columns.pop("start")[1:-1]
        return {key: np.split(values, cut) for key, values in columns.items()}


def loads(page):
    """Return every address that a page's elements or styles could ask for."""
    found = []
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            if value is not None and not value.startswith(("#", "data:")):
                found.append(f"{tag} {name}={value}")
        found += [f"{tag} {name}" for name in attributes if name.startswith("on")]
    return found + re.findall(r"@import|url\((?!#|data:)[^)]*\)", page.text.split("</style>")[0])
