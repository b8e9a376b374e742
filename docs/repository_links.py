"""A preprocessor of mdBook: links that leave docs/ become links to the repository."""
import json
import re
import sys

REPOSITORY = "https://github.com/v2l/v2l/blob/main/"


def visit(items):
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter:
            chapter["content"] = re.sub(r"\]\(\.\./", "](" + REPOSITORY, chapter["content"])
            visit(chapter["sub_items"])


if len(sys.argv) > 1 and sys.argv[1] == "supports":
    sys.exit(0)
_, book = json.load(sys.stdin)
visit(book.get("items") or book.get("sections") or [])
json.dump(book, sys.stdout)
