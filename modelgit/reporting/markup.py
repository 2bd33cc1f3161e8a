"""Foreign texts in HTML, and the page around them."""

from __future__ import annotations

from html import escape

from modelgit.reporting.wording import printable

__all__ = ["STYLE", "document", "paragraph", "text"]

STYLE = """
.mgit{font:14px/1.45 system-ui,sans-serif;max-width:72rem;margin:1.5rem auto;padding:0 1rem}
.mgit h1{font-size:1.2rem}.mgit h2{font-size:1rem;margin-top:2rem}
.mgit table{border-collapse:collapse;width:100%}
.mgit th,.mgit td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid #8884}
.mgit td.n,.mgit th.n{text-align:right;font-variant-numeric:tabular-nums}
.mgit code,.mgit svg text{font-family:ui-monospace,monospace;font-size:12px}
.mgit svg text{fill:currentColor}.mgit svg rect{fill:#d9480f}.mgit svg rect.less{fill:#1971c2}
.mgit .note{opacity:.75}.mgit td.text{white-space:pre-wrap;overflow-wrap:anywhere;vertical-align:top}
.mgit tr.other{background:#d9480f18}
""".strip()


def document(title: str, body: str) -> str:
    """A complete document around `body` (HTML); `title` is a foreign text.

    Its policy forbids every fetch and every script, whatever a name in it says.  Its colours are those of the system,
    light or dark.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title></head><body>{body}</body></html>\n"
    )


def text(value: str) -> str:
    """A foreign text for a page: control characters written out, markup escaped."""
    return escape(printable(value))


def paragraph(value: str) -> str:
    """The same for a text of several lines, whose line breaks stay."""
    return "\n".join(map(text, value.splitlines()))
