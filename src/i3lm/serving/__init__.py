"""A model behind HTTP, in the form that OpenAI's clients speak, with a page to chat on."""
