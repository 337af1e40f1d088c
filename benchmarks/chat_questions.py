"""Score a model on the held-out questions of the embedded conversations.

    python benchmarks/chat_questions.py MODEL [--count 250]

Greedy replies; prints the share of right answers by kind, as JSON.
"""

import argparse
import json
from collections import Counter

from i3lm.chatting import chat
from i3lm.data.conversations import is_right, questions
from i3lm.folder import load_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    options = parser.parse_args()
    loaded = load_folder(options.model)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for question in questions(options.count):
        reply = chat(loaded, question.messages, temperature=0.0, max_new_tokens=120)
        asked[question.kind] += 1
        right[question.kind] += is_right(question, reply)
        if not is_right(question, reply) and options.show > 0:
            options.show -= 1
            print(question.kind, [m["content"] for m in question.messages], "->", reply)
    share = {kind: right[kind] / asked[kind] for kind in asked}
    print(json.dumps({"accuracy": sum(right.values()) / sum(asked.values()), **share}, indent=1))


if __name__ == "__main__":
    main()
