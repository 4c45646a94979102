"""The pages of a service: self-contained, so that a browser asks nobody else."""

from __future__ import annotations

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple


class Page(NamedTuple):
    """A page, and the policy by which a browser lets it run its own script and ask its own server alone."""

    text: str
    policy: str


def page() -> Page:
    """The page at ``/``: draw or drop examples, ask, look at the answer."""
    text = (resources.files("distmeta.serving") / "page.html").read_text(encoding="utf-8")
    return Page(text, _policy(text))


def description(api: Mapping[str, Any]) -> Page:
    """The OpenAPI description as a page that asks nobody for anything."""
    rows: list[str] = []
    for path, methods in api["paths"].items():
        for method, one in methods.items():
            answers = "".join(
                f"<li><code>{code}</code> {html.escape(answer.get('description', ''))}</li>"
                for code, answer in one.get("responses", {}).items()
            )
            body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            shown = (
                f"<details><summary>Body</summary><pre>{html.escape(json.dumps(body, indent=1))}</pre></details>"
                if body
                else ""
            )
            rows.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(one.get('summary', ''))}</p>"
                f"{shown}<ul>{answers}</ul>"
            )
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}pre{overflow:auto;padding:.8rem;border:1px solid #8884;border-radius:.5rem;font-size:.85rem}"
        "h2{margin-top:2rem;font-size:1.1rem}"
    )
    title, about = html.escape(api["info"]["title"]), html.escape(api["info"].get("description", ""))
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>"
        f'<body><h1>{title}</h1><p>{about} For machines: <a href="openapi.json">openapi.json</a>; for people: '
        f'<a href="./">the page</a>.</p>{"".join(rows)}</body></html>'
    )
    return Page(text, _policy(text))


def _policy(text: str) -> str:
    def allowed(tag: str) -> str:
        parts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        hashes = [b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


__all__ = ["Page", "description", "page"]
