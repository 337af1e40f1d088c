"""Makes the golden folder: a small model trained on the built-in conversations, and what it says.

    python tests/hf/golden/make.py

The folder is never made anew: models that people have must load in every later version, and say
the same. A new format gets a golden folder of its own beside this one.
"""

import json
from pathlib import Path

import torch

from i3lm.data.conversations import generate
from i3lm.folder import load_folder, save_folder
from i3lm.generation import Decoder
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

HERE = Path(__file__).parent
QUESTIONS = ("Who are you?", "My name is Anna. What is my name?", "Hello!")
STEPS, BATCH, WINDOW = 1500, 16, 64


def train() -> tuple[I3Network, ChunkTokenizer]:
    """Return a model of about 80,000 parameters after a minute or two of AdamW."""
    conversations = list(generate(2000))
    counter = VocabularyCounter()
    for messages in conversations:
        counter.update(" ".join(message["content"] for message in messages))
    tokenizer = ChunkTokenizer(counter.build(600))
    ids = torch.tensor([int(i) for m in conversations for i in tokenizer.encode_conversation(m)])
    sizes = Architecture(
        vocab_size=len(tokenizer) + 4, used_vocab_size=len(tokenizer), hidden_size=48,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=WINDOW, rank=8, state_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    network = I3Network(sizes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        begins = torch.randint(len(ids) - WINDOW - 1, (BATCH,))
        windows = torch.stack([ids[i : i + WINDOW + 1] for i in begins])
        loss = network.loss(windows[:, :-1], windows[:, 1:]) / (BATCH * WINDOW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(step + 1, round(loss.item(), 3))
    return network.eval(), tokenizer


def main() -> None:
    """Train, save, and write down what the saved model says and how sure it is."""
    save_folder(HERE / "model", *train())
    loaded = load_folder(HERE / "model")
    said = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = [
            int(i)
            for i in loaded.tokenizer.encode_conversation(messages, add_generation_prompt=True)
        ]
        with torch.inference_mode():
            logits = loaded.network(torch.tensor([prompt]), last_only=True)[0, 0]
        decoder, fed, new = Decoder(loaded.network), prompt, []
        while len(new) < 40 and (not new or new[-1] not in (3, 4)):
            scores = decoder.feed(fed)
            best = scores.topk(2).values
            if best[0] - best[1] < 0.02:  # other machines might round to the other one
                break
            fed = [int(scores.argmax())]
            new += fed
        text = loaded.tokenizer.decode([i for i in new if i > 5])
        print(question, "->", text)
        first = [round(float(x), 4) for x in logits[:32]]
        said.append(
            {"messages": messages, "prompt": prompt, "new": new, "text": text, "logits": first}
        )
    (HERE / "expected.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
