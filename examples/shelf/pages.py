"""Pages from the template file beside this module."""

from pathlib import Path
from string import Template

from .books import Book


def titles_page(books: tuple[Book, ...]) -> str:
    template = Template((Path(__file__).parent / "titles.html").read_text("utf-8"))
    return template.substitute(items="".join(f"<li>{book.title} ({book.year})</li>" for book in books))
