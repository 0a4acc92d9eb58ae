"""A class: `enter` loads once per replica, `exit` cleans up, `modal.parameter` gives each language a pool of its own.

modalnomad serve examples/dictionary_class.py

curl "$URL/?word=tree"                → {"language":"german","word":"Baum"}
curl "$URL/?word=tree&language=latin" → {"language":"latin","word":"arbor"}, from another replica
curl "$URL/?word=tree&size=big"       → 422: size is a number
"""

import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("dictionary", image=image)

WORDS = {
    "german": {"tree": "Baum", "house": "Haus", "star": "Stern"},
    "latin": {"tree": "arbor", "house": "domus", "star": "stella"},
}


@app.cls(scaledown_window=30)
@modal.concurrent(max_inputs=10)
class Dictionary:
    language: str = modal.parameter(default="german")
    size: int = modal.parameter(default=100)

    @modal.enter()
    def load(self):
        print(f"loading {self.language}")
        self.words = dict(list(WORDS.get(self.language, {}).items())[: self.size])

    @modal.enter()
    async def check(self):
        print(f"{self.language} has {len(self.words)} words")

    @modal.fastapi_endpoint()
    def translate(self, word: str):
        return {"language": self.language, "word": self.words.get(word)}

    @modal.exit()
    def unload(self):
        print(f"closing {self.language}")
