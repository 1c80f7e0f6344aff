"""Sixty-four prompts, as different from each other as a page allows: questions, code, lists, scripts, long text."""

from __future__ import annotations

_SHORT = [
    "The capital of France is",
    "What is the capital of France?",
    "Hello",
    "1, 2, 3, 4, 5,",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "The three primary colours are",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "import numpy as np\n\nx = np.",
    "Q: Why is the sky blue?\nA:",
    "El perro corre por",
    "Die Hauptstadt von Deutschland ist",
    "Il était une fois",
    "日本の首都は",
    "Привет, как",
    "🙂🙃🙂🙃",
    "SELECT name, age FROM users WHERE",
    "<html>\n<head>\n<title>",
    "To be, or not to be,",
    "E = mc",
    "The quick brown fox",
    "Roses are red,",
    "A",
    "- apples\n- pears\n-",
    "TODO list for Monday:\n1.",
    "The opposite of hot is",
    "In 1969, humans first",
    "int main(void) {\n    printf(",
    "Photosynthesis is the process by which",
    "My favourite recipe for bread needs",
    "Translate to Spanish: good morning ->",
]

_TEXT = (
    "A library is more than a building with books. It is a promise that what one person learned, another may "
    "learn without paying for it twice. The first libraries kept clay tablets, and their keepers wrote catalogues "
    "on more clay. Paper made books light, printing made them many, and the lending library made them common. "
    "Whoever walks in may sit down beside a window, open a volume that was closed for thirty years, and be the "
    "first in a generation to read it. Some readers come for warmth, some for silence, some because a teacher "
    "sent them; the shelves do not ask. A good librarian knows the collection as a gardener knows a garden: not "
    "each leaf, but where things grow and what to plant beside them. When the river flooded in spring, the people "
    "of the town formed a line from the cellar to the hill and passed eleven thousand volumes from hand to hand "
    "in one night. Nobody counted how many were lost, but the story of the line was told for so long that it "
    "became a book of its own, and that book, too, stands on a shelf. "
)

_TASKS = [
    "Summarise the text above in one sentence:",
    "Write a title for the text:",
    "List three facts from the text:",
    "Answer in one word, what is the text about?",
]


def _long(count: int) -> list[str]:
    """Stretches of the text of growing length, each with a task; many share their first words, as real prompts do."""
    prompts = []
    for index in range(count):
        length = 40 + (index * 97) % (len(_TEXT) - 40)
        start = 0 if index % 2 else (index * 53) % 200
        prompts.append(f"{_TEXT[start : start + length]}\n\n{_TASKS[index % len(_TASKS)]}")
    return prompts


PROMPTS = _SHORT + _long(64 - len(_SHORT))
