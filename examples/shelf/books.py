"""What stands on the shelf."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Book:
    title: str
    year: int


ALL = (Book("The Sea-Wolf", 1904), Book("Twenty Thousand Leagues Under the Seas", 1870), Book("Walden", 1854))
