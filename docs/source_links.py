"""Links from the site's pages to files of the repository that are no pages.

In the repository `[trainer](../nspo_jax/rl/trainer.py)` opens the file. On the site it opens the
file at `repo_url` of mkdocs.yml, and is plain text where there is no `repo_url`.
"""

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page, config, files) -> str:
    """Rewrites the links of a page; mkdocs calls it."""

    def rewrite(match: re.Match) -> str:
        text, target = match.groups()
        path = posixpath.normpath(
            posixpath.join("docs", posixpath.dirname(page.file.src_uri), target)
        )
        if path.startswith("docs/"):
            return match[0]
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else text

    return LINK.sub(rewrite, markdown)
