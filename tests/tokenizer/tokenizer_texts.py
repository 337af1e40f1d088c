"""Texts and vocabularies that the tokenizer's tests share."""

from hypothesis import strategies as st

from i3lm.tokenizer import SPECIAL_TOKENS, rule

_PIECES = [
    *(
        "the",
        "and",
        "ing",
        "tion",
        "with",
        "have",
        "our",
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
    ),
    *("a", "b", "e", "s", "t", "I", "'s ", ". ", ", ", "?", "cat", "the cat ", "é", "e\u0301", "ß"),
    *(
        "привет",
        "мир ",
        "你好",
        "世界",
        "न",
        "\u200b",
        "\u00a0",
        "\u2028",
        "\ufeff",
        "\ufffd",
        "\0",
    ),
    *("😀", "👩‍👩‍👧", "𝔘", "\U0010ffff", "İ", "Σ", "ΑΣ ", "^", "-", "]", "\\", "&&", "[[:alpha:]]"),
    *("[IN", "ST]", "<", "[", "<0x0A>", "<0x", "\x1c", "\x85", *SPECIAL_TOKENS),
]
english = st.lists(st.sampled_from(_PIECES[:30]), max_size=40).map("".join)
wild = st.one_of(
    english,
    st.lists(st.sampled_from(_PIECES) | st.characters(exclude_categories=["Cs"])).map("".join),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("the and\n", max_size=40),
)

SAMPLE = (
    "The cat and the dog sat on the mat. What is this thing, and why are you here with me?\n"
    "I have nothing to hide; ask whichever question you like!\n\n"
    "Café, naïve, привет мир, 你好世界 and ^-] \\ [x] &&. Not all of our others can.\n"
) * 3


def tokens_of(chunks: list[str]) -> list[str]:
    return [*rule.SPECIAL_TOKENS, *rule.BYTE_TOKENS, *chunks]


@st.composite
def text_and_chunks(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and a random vocabulary taken from it, with more or fewer holes."""
    text = draw(wild)
    slices = sorted({text[i : i + n] for i in range(len(text)) for n in (1, 2, 3)} - {""})
    random = draw(st.randoms(use_true_random=False))
    return text, random.sample(slices, int(len(slices) * draw(st.sampled_from([0.3, 0.7, 1]))))
