"""Many calls at once, from a program that runs here.

modalnomad run examples/batch.py --longest 3
    → counts the words of a few texts in replicas, all at once, and prints the three most frequent ones

modalnomad run examples/batch.py::count --text "to be or not to be"
    → {'to': 2, 'be': 2, 'or': 1, 'not': 1}

modalnomad run examples/batch.py::Dictionary.lookup --language latin --word tree
    → arbor
"""

from collections import Counter

import modal

app = modal.App("batch")

TEXTS = (
    "the tree and the river",
    "a river runs to the sea",
    "the sea and the sky",
)


@app.function(max_containers=4, retries=2)
@modal.concurrent(max_inputs=2)
def count(text: str) -> dict[str, int]:
    return dict(Counter(text.split()))


@app.cls()
class Dictionary:
    language: str = modal.parameter(default="german")

    @modal.enter()
    def load(self):
        self.words = {"german": {"tree": "Baum"}, "latin": {"tree": "arbor"}}[self.language]

    @modal.method()
    def lookup(self, word: str) -> str:
        return self.words.get(word, "?")


@app.local_entrypoint()
def main(longest: int = 2):
    total = Counter()
    for counted in count.map(TEXTS):
        total.update(counted)
    for word, times in total.most_common(longest):
        print(f"{word}: {times}")
    later = Dictionary(language="latin").lookup.spawn("tree")
    print("tree is", Dictionary().lookup.remote("tree"), "and", later.get())
