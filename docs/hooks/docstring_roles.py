"""Show names that docstrings mark with Sphinx's roles as code, which is all that MkDocs knows."""

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|data|meth|mod|attr):<code>~?([^<]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the role and the path of the name; MkDocs calls this for each page."""
    return ROLE.sub(lambda found: f"<code>{found[1].rsplit('.', 1)[-1]}</code>", html)
